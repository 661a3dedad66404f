# Every target installs what a bare Debian or Ubuntu machine lacks (scripts/bootstrap.sh), asking
# before it uses sudo; YES=1 does not ask. There is one build profile, release, and one target
# folder, which CARGO_TARGET_DIR moves.

SHELL := /bin/bash
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
# rustup's folder first, as its installer has it; scripts/bootstrap.sh sets the same.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/snap/bin
# Deterministic builds of what is checked in: a lock file that would change is an error.
CARGO := cargo
LOCKED := --locked
FUZZ_SECONDS ?= 600

.PHONY: help build demo drill-replica test man completions deb test-deb bench bench-quick \
  bench-scaling bench-more campaign-crash campaign-fuzz campaign-fuzz-guided campaign-kills \
  campaign-replica-kills campaign-locks campaign-faults campaign-power campaign-terms \
  campaign-mutants netem-replica fmt clean

help:
	@echo 'make build          the binaries strongroomd and strongroom, in release mode'
	@echo 'make demo           a real ERP dump through server and client, and back: two minutes'
	@echo 'make drill-replica  the first site is lost, the replica gives back and takes over'
	@echo 'make test           formatting, lints, all tests, documentation tests'
	@echo 'make man completions what both programs say of themselves, into target/'
	@echo 'make deb            Debian packages of both programs, into target/debian'
	@echo 'make test-deb       installs, upgrades, removes them on a copy of this machine (root)'
	@echo 'make bench          figures on dumps in DUMPS=folder (day0.sql, day1.sql; 2 GB or more)'
	@echo 'make bench-quick    the same on the first 200 MB, in under three minutes'
	@echo 'make bench-more     10^5 small files; 5000 sockets of strangers, 64 clients: four minutes'
	@echo 'make bench-scaling  throughput by cores, clients, connections, sizes; half an hour'
	@echo 'make campaign-crash server and clients are killed KILLS=1000 times, real programs; SEED=1'
	@echo 'make campaign-fuzz  every decoder, FUZZ_ITERATIONS=100000000 inputs each; FUZZ_SEED='
	@echo 'make campaign-fuzz-guided  the same under libFuzzer, FUZZ_SECONDS=600 for each target'
	@echo 'make campaign-kills the server is killed KILLS=1000 times at random moments; SEED=1'
	@echo 'make campaign-replica-kills primary and replica are killed, KILLS=200 times; SEED=1'
	@echo 'make netem-replica  a replica over lines that the kernel emulates (root, ip, tc); DUMPS='
	@echo 'make campaign-locks the repository against a model of it, OPS=1000000 operations; SEED=1'
	@echo 'make campaign-faults each call of the disk fails in turn, POINTS=600 of them; SEED=1'
	@echo 'make campaign-power  power cuts of DAYS=5 recorded days, CUTS=50 in each; SEED=1'
	@echo 'make campaign-terms  the server is told to end TERMS=100 times under backups; SEED=1'
	@echo 'make campaign-mutants changes of pure sources that no test notices (cargo-mutants)'
	@echo 'make fmt            formats the sources'
	@echo 'make clean          removes what was built'
	@echo
	@echo 'YES=1 installs missing tools without asking. CARGO_TARGET_DIR moves the target folder.'

build:
	@scripts/bootstrap.sh build
	$(CARGO) build --release --workspace $(LOCKED)

demo:
	@scripts/bootstrap.sh build demo
	$(CARGO) build --release --workspace $(LOCKED)
	@scripts/demo.sh

drill-replica:
	@scripts/bootstrap.sh build demo
	$(CARGO) build --release --workspace $(LOCKED)
	@scripts/drill-replica.sh

# The binaries are built first, because the integration tests start them, and the packages are made
# of them. The runner comes last, so that its count of tests is the end of the output.
test:
	@scripts/bootstrap.sh build test deb copy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets $(LOCKED) -- -D warnings
	$(CARGO) build --release --workspace $(LOCKED)
	@scripts/deb_test.sh
	$(CARGO) test --release --workspace --doc $(LOCKED)
	@if command -v cargo-nextest >/dev/null; then set -x; \
	  $(CARGO) nextest run --release --workspace $(LOCKED); \
	else set -x; \
	  $(CARGO) test --release --workspace $(LOCKED) --lib --bins --tests; \
	fi

man completions:
	@scripts/bootstrap.sh build
	$(CARGO) build --release --workspace $(LOCKED)
	$(CARGO_TARGET_DIR)/release/strongroom-manual $@ $(CARGO_TARGET_DIR)/$@

deb:
	@scripts/bootstrap.sh build deb
	$(CARGO) build --release --workspace $(LOCKED)
	@scripts/deb.sh

test-deb:
	@scripts/bootstrap.sh build deb copy
	$(CARGO) build --release --workspace $(LOCKED)
	@scripts/deb_test.sh

# DUMPS=folder gives the dumps; else ERP_MAKER=script makes them; else tests/data, which is small.
bench bench-quick bench-scaling bench-more:
	@scripts/bootstrap.sh build demo
	@scripts/bench.sh $@

# Folders in memory where there is room: what is looked for is not what a disk does.
campaign-crash campaign-fuzz campaign-kills campaign-replica-kills campaign-locks campaign-faults \
  campaign-power campaign-terms:
	@scripts/bootstrap.sh build
	@scripts/campaign.sh $@

# Coverage-guided, with the address sanitizer. KEEP=1 keeps what leads to new code.
campaign-fuzz-guided:
	@scripts/bootstrap.sh build
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || { \
	  echo 'campaign-fuzz-guided needs a nightly toolchain and cargo install cargo-fuzz'; exit 1; }
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/campaign.sh $@

netem-replica:
	@scripts/bootstrap.sh build
	$(CARGO) build --release --workspace $(LOCKED)
	@scripts/netem-replica.sh

# MUTANTS='--re is_below' and whatever else cargo-mutants takes chooses among them.
campaign-mutants:
	@scripts/bootstrap.sh build
	@$(CARGO) mutants --version >/dev/null 2>&1 || { \
	  echo 'campaign-mutants needs cargo-mutants: cargo install cargo-mutants --locked'; exit 1; }
	@scripts/mutants.sh $(MUTANTS)

fmt:
	$(CARGO) fmt --all

clean:
	$(CARGO) clean
