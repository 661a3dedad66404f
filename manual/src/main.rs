//! Writes what packages have beside the programs: man pages, shell completions, licences.
//!
//! `strongroom-manual man FOLDER` writes a page for each command, `completions FOLDER` what bash,
//! zsh and fish read, `licences FOLDER` the terms of all libraries inside. No program that is
//! installed carries this. Pages are made of the definitions that the programs parse with, so that
//! none tells of a command or option that does not exist; examples that stand here are parsed
//! before anything is written. A command without an example is an error.

mod licences;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use strongroom_client::error::ExitCode as ClientCode;

/// What is known of a program beside its command line.
struct Program {
    command: Command,
    section: &'static str,
    /// Lines that people type; a page shows those that begin with its command, unless the command's
    /// own help has examples.
    examples: &'static [&'static str],
    exits: Vec<(u8, &'static str)>,
    files: &'static [(&'static str, &'static str)],
    other_page: &'static str,
}

const CLIENT_EXAMPLES: [&str; 39] = [
    "strongroom setup --token @token.txt --kit-folder /media/usb",
    "strongroom setup --token @token.txt --recipient age1... --chunk-kib 64",
    "strongroom enroll --token @token.txt --kit recovery-kit-erp.txt",
    "strongroom enroll --token @token.txt --standby",
    "strongroom key new --recipient age1...",
    "strongroom key kit check --kit recovery-kit-erp.txt",
    "strongroom key roll",
    "strongroom key kit promote --kit kit.txt --request erp.request --out erp.descriptor",
    "strongroom key kit print --kit kit.txt --folder /media/usb",
    "strongroom key kit split --kit kit.txt --shares 5 --threshold 3 --folder /media/usb",
    "strongroom key kit join share1.txt share3.txt share4.txt --to /dev/shm/kit.txt",
    "strongroom key recipients list --kit kit.txt",
    "strongroom key recipients add age1... --kit kit.txt",
    "strongroom key recipients remove age1... --kit kit.txt",
    "strongroom key rotate --kit kit.txt",
    "strongroom key renew --kit kit.txt",
    "strongroom key export --to erp.export",
    "strongroom key import erp.export",
    "strongroom key publish erp.descriptor",
    "strongroom list erp --kit recovery-kit-erp.txt",
    "strongroom list --namespace erp --profile operator",
    "strongroom list 3fa9c2 srv/attachments --kit recovery-kit-erp.txt",
    "strongroom diff 3fa9c2 files@latest --kit recovery-kit-erp.txt",
    "strongroom show erp@latest --kit recovery-kit-erp.txt",
    "strongroom verify erp@latest --kit recovery-kit-erp.txt",
    "strongroom verify erp@latest --sample 5 --kit recovery-kit-erp.txt",
    "strongroom forget 3fa9c2 --namespace erp --profile operator",
    "strongroom retain 3fa9c2 --for 5y --namespace erp --profile officer",
    "strongroom hold place 3fa9c2 --reason recall-2026-07 --namespace erp --profile officer",
    "strongroom hold release 3fa9c2 --reason recall-closed --namespace erp --profile officer",
    "strongroom policy show --namespace erp --profile officer",
    "strongroom proposals --profile officer",
    "strongroom approve 12 --meaning reviewed --profile officer",
    "strongroom reject 12 --meaning not-agreed --profile officer",
    "strongroom clock status --profile operator",
    "strongroom clock credit 12h --profile officer",
    "strongroom clock thaw --profile officer",
    "strongroom status --profile operator",
    "strongroom audit statement 4711 --profile audit",
];

const SERVER_EXAMPLES: [&str; 36] = [
    "strongroomd init --data /var/lib/strongroom --host backup.example.com",
    "strongroomd serve --data /var/lib/strongroom --config /etc/strongroom/server.toml",
    "strongroomd token --data /var/lib/strongroom --namespace erp --role backup",
    "strongroomd token --data /var/lib/strongroom --role security-officer --name jane",
    "strongroomd principals list --data /var/lib/strongroom",
    "strongroomd tls roll --data /var/lib/strongroom",
    "strongroomd principals revoke --data /var/lib/strongroom 0123456789abcdef0123456789abcdef",
    "strongroomd namespaces --data /var/lib/strongroom",
    "strongroomd drop --data /var/lib/strongroom --namespace trial",
    "strongroomd status --data /var/lib/strongroom",
    "strongroomd clock status --data /var/lib/strongroom",
    "strongroomd replica add --data /var/lib/strongroom --token @token.txt --name first",
    "strongroomd replica list --data /var/lib/strongroom",
    "strongroomd replica status --data /var/lib/strongroom",
    "strongroomd replica pause --data /var/lib/strongroom first",
    "strongroomd replica resume --data /var/lib/strongroom first",
    "strongroomd replica only --data /var/lib/strongroom first --namespaces erp,files",
    "strongroomd replica take-again --data /var/lib/strongroom first --namespace erp",
    "strongroomd replica roll --data /var/lib/strongroom first",
    "strongroomd replica remove --data /var/lib/strongroom first",
    "strongroomd feed add --data /var/lib/strongroom --token @token.txt --name offsite",
    "strongroomd feed list --data /var/lib/strongroom",
    "strongroomd feed pause --data /var/lib/strongroom offsite",
    "strongroomd feed resume --data /var/lib/strongroom offsite",
    "strongroomd feed roll --data /var/lib/strongroom offsite",
    "strongroomd feed remove --data /var/lib/strongroom offsite",
    "strongroomd scrub run --data /var/lib/strongroom",
    "strongroomd scrub status --data /var/lib/strongroom",
    "strongroomd promote --data /var/lib/strongroom --namespace erp --request erp.request",
    "strongroomd promote --data /var/lib/strongroom --namespace erp --descriptor erp.descriptor",
    "strongroomd demote --data /var/lib/strongroom --namespace erp --descriptor back.descriptor",
    "strongroomd export --data /var/lib/strongroom --to /mnt/disk/strongroom",
    "strongroomd import --from /mnt/disk/strongroom --check",
    "strongroomd import --data /var/lib/strongroom --from /mnt/disk/strongroom",
    "strongroomd gc run --data /var/lib/strongroom",
    "strongroomd gc status --data /var/lib/strongroom",
];

fn client() -> Program {
    let exits = [
        (ClientCode::Done, "done"),
        (ClientCode::Other, "another error; the message says what"),
        (ClientCode::Usage, "the command line, or the profile, does not fit"),
        (ClientCode::Incomplete, "incomplete: something could not be read"),
        (ClientCode::Refused, "refused by policy: locked, or retention out of bounds"),
        (ClientCode::Untrusted, "a signature, digest or proof is wrong: use nothing of it"),
        (ClientCode::NotAuthorised, "revoked or unknown key, wrong role, bad token"),
        (ClientCode::Temporary, "temporary: run the command again later"),
        (ClientCode::Full, "the repository is full"),
        (ClientCode::DumpFailed, "the dump command failed; no snapshot was made"),
        (ClientCode::History, "the server's ledger was rolled back or forked"),
    ];
    Program {
        command: strongroom_client::cli::Cli::command(),
        section: "1",
        examples: &CLIENT_EXAMPLES,
        exits: exits.map(|(code, means)| (code.number(), means)).to_vec(),
        files: &[
            ("~/.config/strongroom/PROFILE/", "keys and state of this machine; opens no backup"),
            ("/etc/strongroom/backup/SOURCE.env", "what strongroom-backup@SOURCE.service runs"),
            ("/var/lib/strongroom-backup/", "profiles of that service"),
        ],
        other_page: "strongroomd(8)",
    }
}

fn server() -> Program {
    Program {
        command: strongroom_server::cli::Cli::command(),
        section: "8",
        examples: &SERVER_EXAMPLES,
        exits: vec![
            (0, "done; for serve: ended by SIGTERM or SIGINT, in order"),
            (1, "failed; the message says what"),
            (2, "the command line is wrong"),
        ],
        files: &[
            ("/etc/strongroom/server.toml", "configuration; every key has a default"),
            ("/var/lib/strongroom/", "the repository; no package ever deletes it"),
        ],
        other_page: "strongroom(1)",
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["man", folder] => write_pages(Path::new(folder)),
        ["completions", folder] => write_completions(Path::new(folder)),
        ["licences", folder] => licences::write(Path::new(folder)),
        _ => Err(io::Error::other("usage: strongroom-manual man|completions|licences FOLDER")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "strongroom-manual: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_pages(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for mut program in [client(), server()] {
        check_examples(&program)?;
        program.command = program.command.disable_help_subcommand(true);
        program.command.build();
        write_page(&program, &program.command, folder)?;
    }
    Ok(())
}

fn check_examples(program: &Program) -> io::Result<()> {
    for example in program.examples {
        let words = example.split_whitespace();
        if let Err(error) = program.command.clone().try_get_matches_from(words) {
            return Err(io::Error::other(format!("'{example}' is not understood: {error}")));
        }
    }
    Ok(())
}

/// Writes the page of a command, and of all below it.
fn write_page(program: &Program, command: &Command, folder: &Path) -> io::Result<()> {
    let man = Man::new(command.clone()).section(program.section).source(source(program));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let help = Help::of(command);
    page.extend(help.notes_section());
    page.extend(exit_section(program, &help));
    page.extend(examples_section(program, command, &help)?);
    page.extend(closing_sections(program, command));
    fs::write(folder.join(man.get_filename()), page)?;
    for below in command.get_subcommands() {
        write_page(program, below, folder)?;
    }
    Ok(())
}

fn source(program: &Program) -> String {
    let version = program.command.get_version().unwrap_or_default();
    format!("{} {version}", program.command.get_name())
}

/// What stands below the options in a command's help, by paragraph.
#[derive(Default)]
struct Help {
    examples: Vec<String>,
    exits: Vec<String>,
    notes: Vec<String>,
}

impl Help {
    fn of(command: &Command) -> Self {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut help = Self::default();
        for paragraph in text.split("\n\n") {
            let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
            if first.starts_with("Example") && first.ends_with(':') {
                // "Examples:" is what the section is called; "Example, for X:" says more.
                help.examples.extend((first != "Examples:").then(|| first.to_owned()));
                let lines = rest.lines().map(|line| line.strip_prefix("  ").unwrap_or(line));
                help.examples.extend(lines.map(str::to_owned));
            } else if paragraph.starts_with("Exit codes:") {
                help.exits.push(paragraph.to_owned());
            } else if !paragraph.trim().is_empty() {
                help.notes.push(paragraph.to_owned());
            }
        }
        help
    }

    fn notes_section(&self) -> Vec<u8> {
        let mut roff = Roff::new();
        if !self.notes.is_empty() {
            roff.control("SH", ["NOTES"]);
        }
        for note in &self.notes {
            roff.control("PP", []);
            roff.text([roman(note)]);
        }
        roff.to_roff().into_bytes()
    }
}

fn exit_section(program: &Program, help: &Help) -> Vec<u8> {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, means) in &program.exits {
        roff.control("TP", []);
        roff.text([roman(code.to_string())]);
        roff.text([roman(*means)]);
    }
    for paragraph in &help.exits {
        roff.control("PP", []);
        roff.text([roman(paragraph)]);
    }
    roff.to_roff().into_bytes()
}

fn examples_section(program: &Program, command: &Command, help: &Help) -> io::Result<Vec<u8>> {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let is_below = |example: &str| {
        example.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    let mut lines = help.examples.clone();
    if lines.is_empty() {
        let own = program.examples.iter().filter(|example| is_below(example));
        lines = own.map(|example| (*example).to_owned()).collect();
    }
    if lines.is_empty() {
        let text = format!("'{name}' has no example; give it one in manual/src/main.rs");
        return Err(io::Error::other(text));
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    roff.control("nf", []);
    for line in lines {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    Ok(roff.to_roff().into_bytes())
}

fn closing_sections(program: &Program, command: &Command) -> Vec<u8> {
    let own = program.command.get_name();
    let mut roff = Roff::new();
    if command.get_name() == own {
        roff.control("SH", ["FILES"]);
        for (path, what) in program.files {
            roff.control("TP", []);
            roff.text([roman(*path)]);
            roff.text([roman(*what)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(format!("{own}({}), {}", program.section, program.other_page))]);
    roff.to_roff().into_bytes()
}

fn write_completions(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for program in [client(), server()] {
        let name = program.command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut program.command.clone(), &name, folder)?;
        }
    }
    Ok(())
}
