//! How a machine becomes a principal, and how a namespace gets its first one.
//!
//! 1. Connect with the token's pin, and compare the ledger key with the token's digest of it.
//! 2. New namespace: sign the descriptor, which pins that ledger key.
//! 3. Write the recovery kit, text and page. *From here on losing this machine loses nothing.*
//! 4. Write the convergence secret and this machine's own keys.
//! 5. Enrol. *Crash before the answer: the same command does the same again.*
//! 6. Write the profile; write the ledger's checkpoint into it and into the kit, whose floor it is.
//!    *Crash: the kit has no floor, and restores all the same.*
//! 7. Remove the pending secrets. What stays opens no backup.
//!
//! The proof is bound to this very connection by its TLS exporter, so a relay gets nothing.

use std::path::{Path, PathBuf};

use serde::Serialize;
use strongroom_protocol::checkpoint::Checkpoint;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId, PublicKey};
use strongroom_protocol::limits::PROTOCOL_VERSION;
use strongroom_protocol::message::{EnrollAnswer, Identity};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::token::{EnrollRequest, Scope, Token};
use strongroom_protocol::vouch::ServerTls;
use zeroize::Zeroizing;

use crate::clock;
use crate::connection::Connection;
use crate::durable;
use crate::error::ClientError;
use crate::export::Export;
use crate::history;
use crate::keys::{ConvergenceSecret, public_key_of};
use crate::kit::{CheckpointFloor, KIT_MAX_BYTES, Kit};
use crate::namespace::{NamespaceError, NamespaceOptions, NewNamespace};
use crate::profile::{
    ConnectOptions, Profile, ProfileFolder, SETTINGS_VERSION, Settings, parse_addresses,
};
use crate::rolling::KeySettings;
use crate::tls::Pin;
use crate::transport::{Body, Client, Endpoint, parse_json};
use crate::trust::{ReadAccess, fetch_descriptor, fetch_signed_descriptor, open_wrapped_secret};

/// Longest answer to identity and enrolment, in bytes.
const ANSWER_MAX_BYTES: u64 = 64 * 1024;

/// How to enrol.
pub struct EnrollOptions {
    /// From the operator.
    pub token: Token,
    /// Name for people.
    pub display_name: String,
    /// Folder for the recovery kit of a new namespace.
    pub kit_folder: PathBuf,
    /// Kit of an existing namespace: lets a further machine of role `backup` have the convergence
    /// secret.
    pub kit: Option<Kit>,
    /// The profile that this becomes the second server of: its namespace, role and convergence
    /// secret are the same.
    pub second_of: Option<Profile>,
    /// How to reach the server.
    pub connect: ConnectOptions,
}

impl EnrollOptions {
    /// What the first server of a profile has shown holds for the second too.
    fn descriptor_floor(&self, imported: Option<&Export>) -> u64 {
        let first = self.second_of.as_ref().map_or(0, |first| first.settings().descriptor_version);
        first.max(imported.map_or(0, |export| export.descriptor_version))
    }

    /// A further backup machine can do nothing on a server that the descriptor does not name, and a
    /// token works once: so the kit asks first.
    async fn ask_with_kit(&self) -> Result<(), ClientError> {
        let Some(kit) = self.kit.as_ref().filter(|_| self.token.role == Role::Backup) else {
            return Ok(());
        };
        let mut connect = self.connect.clone();
        if connect.servers.is_empty() {
            connect.servers = parse_addresses(&self.token.addresses)?;
        }
        let asked = ReadAccess::with_kit(kit, &connect, false).await;
        asked.map(drop).map_err(|error| match error {
            ClientError::Untrusted(why) => ClientError::Untrusted(format!(
                "{why}. If it is the replica of that server: promote it first, or enrol with the \
                 other one. The token was not used"
            )),
            error => error,
        })
    }

    fn check(&self, imported: Option<&Export>) -> Result<(), ClientError> {
        if self.token.role == Role::Feeder {
            return Err(ClientError::Usage(
                "the token is for a server that lends its connections: use it there, with \
                 strongroomd feed add --token TOKEN"
                    .into(),
            ));
        }
        match &self.second_of {
            Some(first) => check_second(&self.token, first),
            None => check_kit(&self.token, self.kit.as_ref(), imported),
        }
    }
}

/// What came of it; the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnrollSummary {
    /// Who this machine is now.
    pub principal: PrincipalId,
    /// What it may do.
    pub role: Role,
    /// Its namespace.
    pub namespace: Option<NamespaceId>,
    /// The namespace's name.
    pub namespace_name: Option<Label>,
    /// Recovery kit as text, of a new namespace.
    pub kit_text: Option<PathBuf>,
    /// Recovery kit as a page to print.
    pub kit_page: Option<PathBuf>,
    /// How many recipients can open backups; fewer than two is a risk.
    pub recipient_count: Option<usize>,
}

/// Makes the secrets of a new namespace and keeps them in the profile's folder until enrolment.
pub fn new_namespace(
    folder: &ProfileFolder,
    options: NamespaceOptions,
) -> Result<NewNamespace, ClientError> {
    refuse_enrolled(folder)?;
    folder.make()?;
    let namespace = NewNamespace::generate(options).map_err(namespace_error)?;
    let text = namespace.to_pending_text().map_err(namespace_error)?;
    folder.write_pending_namespace(&text)?;
    Ok(namespace)
}

/// The pending namespace of a profile's folder.
pub fn pending_namespace(folder: &ProfileFolder) -> Result<Option<NewNamespace>, ClientError> {
    match folder.pending_namespace()? {
        Some(text) => NewNamespace::from_pending_text(&text).map(Some).map_err(namespace_error),
        None => Ok(None),
    }
}

/// Enrols this machine with a token.
pub async fn enroll(
    folder: &ProfileFolder,
    options: EnrollOptions,
) -> Result<EnrollSummary, ClientError> {
    refuse_enrolled(folder)?;
    folder.make()?;
    let token = &options.token;
    let new = match &token.scope {
        Scope::New(_) => Some(pending_namespace(folder)?.ok_or_else(|| {
            ClientError::Usage(
                "this token is for a new namespace: run `strongroom key new` first, or \
                 `strongroom setup --token TOKEN`, which does both"
                    .into(),
            )
        })?),
        _ => None,
    };
    let imported = Export::kept(folder)?;
    options.check(imported.as_ref())?;
    options.ask_with_kit().await?;

    let identity = folder.tls_identity()?;
    let signing_key = folder.signing_key()?;
    let mut addresses = parse_addresses(&token.addresses)?;
    if !options.connect.servers.is_empty() {
        addresses.clone_from(&options.connect.servers);
    }
    let endpoint = Endpoint {
        addresses: addresses.clone(),
        pin: Pin::Key(token.tls_key),
        timeouts: options.connect.timeouts,
        retry: options.connect.retry,
        // A token goes with one key; it is made anew in a minute.
        follow: None,
    };
    let client = Client::new(endpoint, &identity)?;
    let mut connection = client.connect().await?;
    let (ledger_key, server_serial) = ask_ledger_key(&mut connection, token).await?;

    let mut prepared = Prepared::default();
    if let (Some(namespace), Scope::New(name)) = (&new, &token.scope) {
        prepared = prepare_namespace(folder, namespace, name, ledger_key, &addresses, &options)?;
    }
    let request = EnrollRequest {
        token: token.id,
        tls_key: identity.key_digest()?,
        signing_key: public_key_of(&signing_key),
        display_name: options.display_name.clone(),
        descriptor: prepared.descriptor.clone(),
    };
    let body = request.encode(&token.secret, connection.exporter());
    let answer = connection.call(&Route::Enroll, "", body.into(), ANSWER_MAX_BYTES).await?;
    let answer: EnrollAnswer = parse_json(&Route::Enroll, &answer)?;
    check_answer(&answer, token, ledger_key, new.as_ref())?;

    let settings = Settings {
        descriptor_version: options.descriptor_floor(imported.as_ref()),
        ..first_settings(addresses, token, &answer, server_serial)
    };
    let summary = finish(folder, settings, &client, &prepared, &options, &answer).await?;
    take_import(folder, &options, imported)?;
    Ok(summary)
}

/// What a profile says when it begins.
fn first_settings(
    addresses: Vec<String>,
    token: &Token,
    answer: &EnrollAnswer,
    server_serial: u64,
) -> Settings {
    let made_seconds = clock::wall_seconds();
    Settings {
        version: SETTINGS_VERSION,
        addresses,
        tls_key: token.tls_key,
        ledger_key: answer.ledger_key,
        principal: answer.principal,
        role: answer.role,
        namespace: answer.namespace,
        namespace_name: answer.namespace_name.clone(),
        descriptor_version: 0,
        checkpoint: None,
        keys: KeySettings { made_seconds, server_serial, ..KeySettings::default() },
    }
}

/// What `key import` kept becomes the secret of a further machine, if it is that of the namespace's
/// epoch; other enrolments leave it where it is.
fn take_import(
    folder: &ProfileFolder,
    options: &EnrollOptions,
    imported: Option<Export>,
) -> Result<(), ClientError> {
    let is_further = matches!(options.token.scope, Scope::Existing(..))
        && options.token.role == Role::Backup
        && options.kit.is_none()
        && options.second_of.is_none();
    let Some(imported) = imported.filter(|_| is_further) else { return Ok(()) };
    let profile = Profile::open(folder.clone())?;
    let descriptor = profile.kept_descriptor()?;
    let descriptor =
        descriptor.ok_or_else(|| ClientError::Bug("an enrolment left no descriptor".into()))?;
    // A machine that has no secret makes no backups: it says what to do instead.
    imported.check(&descriptor)?;
    folder.write_convergence_secret(&imported.secret)?;
    folder.remove_imported()
}

/// A further writer needs the kit, or an export, of the very namespace that the token names: an
/// operator who hands out a token for a namespace of his own must not get anybody's backups into
/// it.
fn check_kit(
    token: &Token,
    kit: Option<&Kit>,
    imported: Option<&Export>,
) -> Result<(), ClientError> {
    let Scope::Existing(namespace, name) = &token.scope else { return Ok(()) };
    let other = |what: &str| {
        ClientError::Untrusted(format!(
            "the token is for another namespace ({name}) than the {what}: ask who made the token \
             why"
        ))
    };
    let is_writer = token.role == Role::Backup;
    match (kit, imported.filter(|_| is_writer)) {
        (Some(kit), _) if kit.namespace != *namespace => Err(other("kit")),
        (None, Some(export)) if export.namespace != *namespace => Err(other("export")),
        (None, None) if is_writer => Err(ClientError::Usage(
            "a further backup machine of a namespace needs its convergence secret: name the \
             recovery kit with --kit FILE (it is only read), or bring the secret from a machine \
             that has it (`strongroom key export` there, `strongroom key import` here)"
                .into(),
        )),
        _ => Ok(()),
    }
}

/// A second server must be for what the first is for: else backups would go astray with it.
fn check_second(token: &Token, first: &Profile) -> Result<(), ClientError> {
    let settings = first.settings();
    if !token.role.is_of_namespace() || token.role != settings.role {
        return Err(ClientError::Usage(format!(
            "the token is for role {}, and this profile has role {}: a second server needs a \
             token of the same role, backup or restore; for another, use another --profile",
            token.role, settings.role
        )));
    }
    match &token.scope {
        Scope::Existing(namespace, _) if Some(*namespace) == settings.namespace => Ok(()),
        Scope::Existing(_, name) => Err(ClientError::Untrusted(format!(
            "the token is for another namespace ({name}) than this profile: ask who made the token \
             why"
        ))),
        _ => Err(ClientError::Usage(
            "the token is for a namespace that its server does not have: the second server must be \
             a replica of the first, and in sync, before it makes the token"
                .into(),
        )),
    }
}

/// What a new namespace leaves before it is enrolled.
#[derive(Default)]
struct Prepared {
    descriptor: Vec<u8>,
    kit_text: Option<PathBuf>,
    kit_page: Option<PathBuf>,
}

fn prepare_namespace(
    folder: &ProfileFolder,
    namespace: &NewNamespace,
    name: &Label,
    ledger_key: PublicKey,
    addresses: &[String],
    options: &EnrollOptions,
) -> Result<Prepared, ClientError> {
    let today = clock::today();
    let kit = namespace.kit(name.clone(), addresses.to_vec(), None, today);
    let text_path = options.kit_folder.join(format!("recovery-kit-{name}.txt"));
    let page_path = options.kit_folder.join(format!("recovery-kit-{name}.html"));
    if !is_kit_of(&text_path, namespace.namespace())? {
        let bad = |error: crate::kit::KitError| ClientError::Usage(error.to_string());
        let (text, page) = (kit.to_text().map_err(bad)?, kit.to_html().map_err(bad)?);
        durable::make_folder(&options.kit_folder)?;
        // The text is what a later run looks for, so it goes last.
        durable::create(&page_path, page.as_bytes())?;
        durable::create(&text_path, text.as_bytes())?;
    }
    folder.write_convergence_secret(namespace.convergence_secret())?;
    Ok(Prepared {
        descriptor: namespace.descriptor(&[ledger_key]),
        kit_text: Some(text_path),
        kit_page: Some(page_path),
    })
}

async fn finish(
    folder: &ProfileFolder,
    settings: Settings,
    client: &Client,
    prepared: &Prepared,
    options: &EnrollOptions,
    answer: &EnrollAnswer,
) -> Result<EnrollSummary, ClientError> {
    if let (Some(first), Role::Backup) = (&options.second_of, answer.role) {
        folder.write_convergence_secret(&first.convergence_secret()?)?;
    }
    let mut profile = Profile::create(folder.clone(), settings)?;
    if let Some(floor) = options.kit.as_ref().and_then(|kit| kit.checkpoint)
        && floor.ledger_key == profile.settings().ledger_key
    {
        history::demand_floor(client, &floor).await?;
    }
    let newest = history::greet(&mut profile, client).await?;
    raise_kit(prepared, profile.settings().ledger_key, &newest)?;
    let mut descriptor: Option<VerifiedDescriptor> = None;
    if !prepared.descriptor.is_empty() {
        descriptor = Some(profile.accept_descriptor(&prepared.descriptor)?);
    } else if options.second_of.is_some() {
        descriptor = Some(fetch_signed_descriptor(&mut profile, client).await?);
    } else if answer.namespace.is_some() {
        descriptor = Some(fetch_descriptor(&mut profile, client).await?);
    }
    if let (Some(kit), Some(descriptor), Role::Backup) = (&options.kit, &descriptor, answer.role) {
        if descriptor.contents().version < kit.descriptor_version {
            return Err(ClientError::Untrusted(
                "the server's descriptor is older than the kit: it was rolled back".into(),
            ));
        }
        let identities = [kit.identity.clone()];
        let secret: ConvergenceSecret = open_wrapped_secret(descriptor, &identities)?;
        folder.write_convergence_secret(&secret)?;
    }
    folder.remove_pending_namespace()?;
    Ok(EnrollSummary {
        principal: answer.principal,
        role: answer.role,
        namespace: answer.namespace,
        namespace_name: answer.namespace_name.clone(),
        kit_text: prepared.kit_text.clone(),
        kit_page: prepared.kit_page.clone(),
        recipient_count: descriptor.map(|known| known.contents().recipients.len()),
    })
}

/// Writes the ledger's checkpoint into the kit that this enrolment wrote, whole and at once.
fn raise_kit(
    prepared: &Prepared,
    ledger_key: PublicKey,
    newest: &Checkpoint,
) -> Result<(), ClientError> {
    let (Some(text), Some(page)) = (&prepared.kit_text, &prepared.kit_page) else { return Ok(()) };
    let bad = |error: crate::kit::KitError| ClientError::Usage(error.to_string());
    let max_bytes = u64::try_from(KIT_MAX_BYTES).unwrap_or(u64::MAX);
    let bytes = Zeroizing::new(durable::read(text, max_bytes)?);
    let mut kit = Kit::parse(std::str::from_utf8(&bytes).unwrap_or_default()).map_err(bad)?;
    kit.checkpoint = Some(CheckpointFloor { ledger_key, size: newest.size, root: newest.root });
    durable::write(page, kit.to_html().map_err(bad)?.as_bytes())?;
    durable::write(text, kit.to_text().map_err(bad)?.as_bytes())
}

/// The server's ledger key, which must be the one that the token means, and the number of its TLS
/// key.
async fn ask_ledger_key(
    connection: &mut Connection,
    token: &Token,
) -> Result<(PublicKey, u64), ClientError> {
    let route = Route::Identity;
    let answer = connection.call(&route, "", Body::empty(), ANSWER_MAX_BYTES).await?;
    let identity: Identity = parse_json(&route, &answer)?;
    if identity.protocol != PROTOCOL_VERSION {
        return Err(ClientError::Protocol(format!("it speaks version {}", identity.protocol)));
    }
    if *blake3::hash(&identity.ledger_key.0).as_bytes() != token.ledger_key_digest {
        return Err(ClientError::Untrusted(
            "the server's ledger key is not the one that the token names: ask the operator for a \
             new token over a channel that you trust"
                .into(),
        ));
    }
    let tls = ServerTls::vouched_by(&identity, &identity.ledger_key, connection.server_key());
    Ok((identity.ledger_key, tls.map_or(0, |tls| tls.serial)))
}

fn check_answer(
    answer: &EnrollAnswer,
    token: &Token,
    ledger_key: PublicKey,
    new: Option<&NewNamespace>,
) -> Result<(), ClientError> {
    let wanted_namespace = match (&token.scope, new) {
        (Scope::Existing(namespace, _), _) => Some(*namespace),
        (_, Some(new)) => Some(new.namespace()),
        _ => None,
    };
    let is_good = answer.role == token.role
        && answer.ledger_key == ledger_key
        && answer.namespace == wanted_namespace;
    if is_good {
        return Ok(());
    }
    Err(ClientError::Untrusted(
        "the server enrolled this machine as something else than the token says: ask the operator \
         to revoke it, and use a new token"
            .into(),
    ))
}

/// Whether the file is a kit of this namespace, as after an enrolment whose answer was lost.
fn is_kit_of(path: &Path, namespace: NamespaceId) -> Result<bool, ClientError> {
    let max_bytes = u64::try_from(KIT_MAX_BYTES).unwrap_or(u64::MAX);
    let Some(bytes) = durable::read_if_there(path, max_bytes)? else { return Ok(false) };
    let text = String::from_utf8_lossy(&bytes);
    if Kit::parse(&text).is_ok_and(|kit| kit.namespace == namespace) {
        return Ok(true);
    }
    Err(ClientError::Usage(format!(
        "{} exists and is not the kit of this namespace: move it away, or name another folder with \
         --kit-folder",
        path.display()
    )))
}

fn refuse_enrolled(folder: &ProfileFolder) -> Result<(), ClientError> {
    if !folder.is_enrolled() {
        return Ok(());
    }
    Err(ClientError::Usage(
        "this profile is enrolled already: name a new one with --profile NAME".into(),
    ))
}

fn namespace_error(error: NamespaceError) -> ClientError {
    ClientError::Usage(error.to_string())
}
