//! What the commands of `strongroom key` do and print.

use std::path::{Path, PathBuf};

use serde::Serialize;
use strongroom_protocol::descriptor::{Codec, Descriptor, VerifiedDescriptor};
use strongroom_protocol::id::{Label, NamespaceId};
use strongroom_protocol::limits::{DESCRIPTOR_MAX_BYTES, PROMOTION_MAX_BYTES};
use strongroom_protocol::message::DescriptorOffered;
use zeroize::Zeroizing;

use crate::clock;
use crate::durable;
use crate::enroll;
use crate::epoch;
use crate::error::ClientError;
use crate::export::{EXPORT_MAX_BYTES, Export};
use crate::history;
use crate::key_cli::{Key, KitCommand, NewKeys, Recipients, Signing};
use crate::kit::Kit;
use crate::namespace::NamespaceOptions;
use crate::offer::{self, Changed};
use crate::output::{key_age_text, kit_text, promoted_text, promotion_text};
use crate::passphrase;
use crate::profile::Profile;
use crate::promotion;
use crate::recipients;
use crate::reprint;
use crate::shares::{self, SHARE_MAX_BYTES, Share};
use crate::snapshot;
use crate::standby::{self, Purpose};
use crate::terminal::{Output, read_kit};
use crate::trust::{ReadAccess, fetch_descriptor, fetch_signed_descriptor, open_wrapped_secret};

const OF_OLD_SNAPSHOTS: &str = "\
It acts on snapshots that are made from now on. Older ones stay sealed to whom they were sealed to:
who was added does not open them, and who was removed still does.
";

/// Runs a command of `key`.
pub async fn run(output: &Output, command: Key) -> Result<(), ClientError> {
    match command {
        Key::New(keys) => new_keys(output, keys),
        Key::Kit(command) => Box::pin(kit(output, command)).await,
        Key::Recipients(Recipients::List { kit }) => list_recipients(output, kit.as_deref()).await,
        Key::Recipients(Recipients::Add { recipient, signing }) => {
            let add = |kit: &Kit, newest: &_| recipients::add(kit, newest, &recipient);
            change(output, &signing, add, OF_OLD_SNAPSHOTS).await
        }
        Key::Recipients(Recipients::Remove { recipient, force, signing }) => {
            let remove = |kit: &Kit, newest: &_| recipients::remove(kit, newest, &recipient, force);
            change(output, &signing, remove, OF_OLD_SNAPSHOTS).await
        }
        Key::Rotate(signing) => {
            let next = "Next, on each machine: strongroom key renew --kit FILE. Until then it \
                        makes no backups.\nOld snapshots open as ever.\n";
            change(output, &signing, |_, newest| epoch::begin(newest), next).await
        }
        Key::Renew { kit } => renew(output, &kit).await,
        Key::Export { to, passphrase_file } => export(output, &to, passphrase_file.as_deref()),
        Key::Import { file, passphrase_file } => {
            import(output, &file, passphrase_file.as_deref()).await
        }
        Key::Roll { now } => roll(output, now).await,
        Key::Publish { file, kit } => publish(output, &file, kit.as_deref()).await,
    }
}

/// What `key new` was told.
pub fn namespace_options(keys: NewKeys) -> NamespaceOptions {
    NamespaceOptions {
        chunk_average_bytes: keys.chunk_kib.saturating_mul(1024),
        codec: match keys.zstd_level {
            0 => Codec::None,
            level => Codec::Zstd(level),
        },
        extra_recipients: keys.recipient,
    }
}

fn new_keys(output: &Output, keys: NewKeys) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct NewKeysSummary {
        namespace: NamespaceId,
    }
    let namespace = enroll::new_namespace(&output.folder()?, namespace_options(keys))?;
    let summary = NewKeysSummary { namespace: namespace.namespace() };
    output.emit(&summary, || {
        format!(
            "namespace {}\nIts secrets wait in this profile. Next: strongroom enroll --token \
             TOKEN, which writes the recovery kit and removes them.\n",
            summary.namespace
        )
    })
}

async fn kit(output: &Output, command: KitCommand) -> Result<(), ClientError> {
    match command {
        KitCommand::Check { kit } => {
            let access = ReadAccess::with_kit(&read_kit(&kit)?, &output.connect()?, false).await?;
            let check = Box::pin(snapshot::check_kit(&access)).await?;
            output.emit(&check, || kit_text(&check))
        }
        KitCommand::Promote { kit, request, out } => promote(output, &kit, &request, out),
        KitCommand::Print { kit, folder } => print_kit(output, &kit, &folder).await,
        KitCommand::Split { kit, shares, threshold, folder } => {
            split(output, &kit, (shares, threshold), &folder)
        }
        KitCommand::Join { shares, to } => join(output, &shares, &to),
    }
}

fn promote(output: &Output, kit: &Path, request: &Path, out: PathBuf) -> Result<(), ClientError> {
    let kit = read_kit(kit)?;
    let request = durable::read(request, u64::from(PROMOTION_MAX_BYTES))?;
    let prepared = promotion::prepare(&kit, &request, out)?;
    output.say(&promotion_text(prepared.summary()));
    let summary = prepared.summary();
    durable::create(&summary.file, &prepared.sign(&kit))?;
    output.emit(summary, || promoted_text(summary))
}

async fn list_recipients(output: &Output, kit: Option<&Path>) -> Result<(), ClientError> {
    let connect = output.connect()?;
    let descriptor = match kit {
        Some(kit) => Box::pin(offer::newest_with_kit(&read_kit(kit)?, &connect)).await?.0,
        None => {
            let profile = output.profile()?;
            let mut profile = standby::choose(profile, &connect, Purpose::Read).await?.profile;
            let client = crate::history::connect(&mut profile, &connect).await?;
            fetch_signed_descriptor(&mut profile, &client).await?
        }
    };
    let state = changed(&descriptor, true);
    output.emit(&state, || recipients_text(&state.recipients))
}

/// Makes the next descriptor, and gives it to the server or to a file.
async fn change(
    output: &Output,
    signing: &Signing,
    make: impl FnOnce(&Kit, &VerifiedDescriptor) -> Result<Descriptor, ClientError>,
    words: &str,
) -> Result<(), ClientError> {
    let kit = read_kit(&signing.kit)?;
    let (newest, client) = match &signing.from {
        Some(from) => (offer::newest_from_file(&kit, from)?, None),
        None => {
            let (newest, client) =
                Box::pin(offer::newest_with_kit(&kit, &output.connect()?)).await?;
            (newest, Some(client))
        }
    };
    let signed = make(&kit, &newest)?.sign(&kit.authority_key);
    let next = VerifiedDescriptor::decode(&signed)?;
    let mut summary = changed(&next, false);
    match (&signing.out, client) {
        (Some(out), _) => durable::create(out, &signed)?,
        (None, Some(client)) => {
            offer::publish(&client, kit.namespace, signed).await?;
            summary.is_published = true;
        }
        (None, None) => return Err(ClientError::Usage("--from needs --out".into())),
    }
    output.emit(&summary, || {
        let done = match &signing.out {
            Some(out) => format!(
                "signed: {}\nNext, on any machine of the namespace: strongroom key publish FILE\n",
                out.display()
            ),
            None => "published\n".into(),
        };
        format!(
            "{done}version {} of the namespace's descriptor, epoch {}\n{}{words}On every copy of \
             the kit, write descriptor_version = {}, or print it anew (key kit print).\n",
            summary.version,
            summary.epoch,
            recipients_text(&summary.recipients),
            summary.version
        )
    })
}

/// The keys of a profile at one of its servers; a row of what `--json` prints.
#[derive(Serialize)]
struct KeysState {
    servers: String,
    made_seconds: u64,
    due_seconds: Option<u64>,
    is_rolled: bool,
}

async fn roll(output: &Output, now: bool) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct KeysStates {
        keys: Vec<KeysState>,
    }
    let (connect, first) = (output.connect()?, output.profile()?);
    let second = standby::second_of(&first)?.filter(|_| connect.servers.is_empty());
    let mut keys = Vec::new();
    for mut profile in [Some(first), second].into_iter().flatten() {
        let before = profile.keys_made_seconds();
        // A server whose ledger is not the one that was seen learns no new keys.
        drop(history::connect(&mut profile, &connect).await?);
        let mut is_rolled = profile.keys_made_seconds() != before;
        if now && !is_rolled {
            history::roll_now(&mut profile, &connect).await?;
            is_rolled = true;
        }
        keys.push(KeysState {
            servers: profile.settings().addresses.join(","),
            made_seconds: profile.keys_made_seconds(),
            due_seconds: profile.keys_due_seconds(),
            is_rolled,
        });
    }
    let states = KeysStates { keys };
    output.emit(&states, || states.keys.iter().map(keys_text).collect())
}

fn keys_text(keys: &KeysState) -> String {
    let rolled = if keys.is_rolled { ", rolled over now" } else { "" };
    format!("{}: {}{rolled}\n", keys.servers, key_age_text(keys.made_seconds, keys.due_seconds))
}

async fn publish(output: &Output, file: &Path, kit: Option<&Path>) -> Result<(), ClientError> {
    let signed = durable::read(file, u64::from(DESCRIPTOR_MAX_BYTES))?;
    let descriptor = VerifiedDescriptor::decode(&signed)?;
    let connect = output.connect()?;
    let client = match kit {
        Some(kit) => Box::pin(offer::newest_with_kit(&read_kit(kit)?, &connect)).await?.1,
        None => {
            let chosen = standby::choose(output.profile()?, &connect, Purpose::Backup).await?;
            let mut profile = chosen.profile;
            crate::history::connect(&mut profile, &connect).await?
        }
    };
    let outcome: DescriptorOffered =
        offer::publish(&client, descriptor.namespace(), signed).await?;
    output.emit(&outcome, || {
        let version = outcome.version;
        match outcome.is_new {
            true => format!("published: version {version} of the namespace's descriptor\n"),
            false => format!("version {version} was there already\n"),
        }
    })
}

async fn renew(output: &Output, kit: &Path) -> Result<(), ClientError> {
    let kit = read_kit(kit)?;
    let (profile, descriptor) = newest_of_profile(output).await?;
    if kit.namespace != descriptor.namespace() {
        return Err(ClientError::Usage(
            "the kit is of another namespace than this profile; nothing was changed".into(),
        ));
    }
    if descriptor.contents().version < kit.descriptor_version {
        return Err(ClientError::Untrusted(
            "the server's descriptor is older than the kit: it was rolled back".into(),
        ));
    }
    let secret = open_wrapped_secret(&descriptor, &[kit.identity])?;
    epoch::adopt(&profile, &descriptor, &secret)?;
    tell_renewed(output, &descriptor)
}

fn export(output: &Output, to: &Path, passphrase: Option<&Path>) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct Exported<'a> {
        file: &'a Path,
        namespace: NamespaceId,
        epoch: u32,
    }
    let export = Export::of_profile(&output.profile()?)?;
    let passphrase = passphrase::read_new(passphrase)?;
    durable::create(to, &export.seal(&passphrase)?)?;
    let summary = Exported { file: to, namespace: export.namespace, epoch: export.epoch };
    output.emit(&summary, || {
        format!(
            "exported: {}\nOn the second machine: strongroom key import FILE, then strongroom \
             enroll --token TOKEN.\nThen remove the file from both.\n",
            to.display()
        )
    })
}

async fn import(
    output: &Output,
    file: &Path,
    passphrase: Option<&Path>,
) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct Imported {
        namespace: NamespaceId,
        namespace_name: Option<Label>,
        epoch: u32,
    }
    let bytes = durable::read(file, EXPORT_MAX_BYTES)?;
    let export = Export::open(&passphrase::read(passphrase)?, &bytes)?;
    let folder = output.folder()?;
    if folder.is_enrolled() {
        let (profile, descriptor) = newest_of_profile(output).await?;
        export.check(&descriptor)?;
        epoch::adopt(&profile, &descriptor, &export.secret)?;
        return tell_renewed(output, &descriptor);
    }
    folder.make()?;
    export.keep(&folder)?;
    let (namespace, epoch) = (export.namespace, export.epoch);
    let summary = Imported { namespace, namespace_name: export.namespace_name.clone(), epoch };
    output.emit(&summary, || {
        format!(
            "imported: the secret of namespace {}\nIt waits in this profile. Next: strongroom \
             enroll --token TOKEN, with a token of role backup for it.\n",
            summary.namespace_name.as_ref().map_or("", Label::as_str)
        )
    })
}

/// The profile that makes backups, and the newest descriptor of its server.
async fn newest_of_profile(output: &Output) -> Result<(Profile, VerifiedDescriptor), ClientError> {
    let first = output.profile()?;
    first.namespace()?;
    let connect = output.connect()?;
    let mut chosen = standby::choose(first, &connect, Purpose::Backup).await?.profile;
    let client = crate::history::connect(&mut chosen, &connect).await?;
    let descriptor = fetch_descriptor(&mut chosen, &client).await?;
    // The first server's folder is the one that has the second's in it.
    Ok((output.profile()?, descriptor))
}

fn tell_renewed(output: &Output, descriptor: &VerifiedDescriptor) -> Result<(), ClientError> {
    let state = changed(descriptor, true);
    output.emit(&state, || {
        format!("this machine has the secret of epoch {}; its backups go on\n", state.epoch)
    })
}

async fn print_kit(output: &Output, kit: &Path, folder: &Path) -> Result<(), ClientError> {
    let connect = output.connect()?;
    let kit = Box::pin(reprint::renewed(&read_kit(kit)?, &connect, clock::today())).await?;
    let stem = format!("recovery-kit-{}", kit.namespace_name);
    let (text, page) = (kit.to_text().map_err(usage)?, kit.to_html().map_err(usage)?);
    let files = Written::put(folder, &stem, &text, &page)?;
    output.emit(&files, || {
        format!(
            "recovery kit: {} (text) and {} (to print)\nIts floors are today's: descriptor \
             version {}, {} ledger entries. Print it twice, keep the copies apart and offline, \
             delete\nboth files, and destroy the older copies.\n",
            files.text.display(),
            files.page.display(),
            kit.descriptor_version,
            kit.checkpoint.map_or(0, |floor| floor.size),
        )
    })
}

fn split(
    output: &Output,
    kit: &Path,
    (count, threshold): (u8, u8),
    folder: &Path,
) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct Split {
        shares: Vec<Written>,
        threshold: u8,
    }
    let kit = read_kit(kit)?;
    let made = shares::split(&kit, count, threshold, clock::today()).map_err(usage)?;
    let mut written = Vec::new();
    for share in made {
        let (text, page) = (share.to_text().map_err(usage)?, share.to_html().map_err(usage)?);
        let stem = format!("recovery-share-{}-{}-of-{count}", kit.namespace_name, share.number());
        written.push(Written::put(folder, &stem, &text, &page)?);
    }
    let summary = Split { shares: written, threshold };
    output.emit(&summary, || {
        let files = summary.shares.iter().map(|share| format!("  {}\n", share.page.display()));
        format!(
            "any {threshold} of these {count} shares give the kit back:\n{}Print each once, give \
             them to different people or places, and delete the files.\nThe kit that is still \
             whole opens everything all the same: destroy it, or keep it safe.\n",
            files.collect::<String>()
        )
    })
}

fn join(output: &Output, files: &[PathBuf], to: &Path) -> Result<(), ClientError> {
    #[derive(Serialize)]
    struct Joined<'a> {
        kit: &'a Path,
        namespace: NamespaceId,
    }
    let max_bytes = u64::try_from(SHARE_MAX_BYTES).unwrap_or(u64::MAX);
    let mut shares = Vec::new();
    for file in files {
        let bytes = Zeroizing::new(durable::read(file, max_bytes)?);
        let name = file.display().to_string();
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        shares.push((name.clone(), Share::parse(&name, text).map_err(usage)?));
    }
    let kit = shares::join(&shares).map_err(usage)?;
    durable::create(to, kit.to_text().map_err(usage)?.as_bytes())?;
    let summary = Joined { kit: to, namespace: kit.namespace };
    output.emit(&summary, || {
        format!(
            "recovery kit: {}\nIt opens every backup of {}: remove it when it has done its work.\n",
            to.display(),
            kit.namespace_name
        )
    })
}

/// A text and its page, in a folder.
#[derive(Serialize)]
struct Written {
    text: PathBuf,
    page: PathBuf,
}

impl Written {
    fn put(folder: &Path, stem: &str, text: &str, page: &str) -> Result<Self, ClientError> {
        durable::make_folder(folder)?;
        let files = Self {
            text: folder.join(format!("{stem}.txt")),
            page: folder.join(format!("{stem}.html")),
        };
        durable::create(&files.page, page.as_bytes())?;
        durable::create(&files.text, text.as_bytes())?;
        Ok(files)
    }
}

fn changed(descriptor: &VerifiedDescriptor, is_published: bool) -> Changed {
    let contents = descriptor.contents();
    Changed {
        namespace: descriptor.namespace(),
        version: contents.version,
        epoch: contents.epoch,
        recipients: contents.recipients.clone(),
        is_published,
    }
}

fn recipients_text(recipients: &[String]) -> String {
    let lines: String = recipients.iter().map(|recipient| format!("  {recipient}\n")).collect();
    format!("recipients:\n{lines}")
}

fn usage(error: impl std::fmt::Display) -> ClientError {
    ClientError::Usage(error.to_string())
}
