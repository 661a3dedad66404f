//! The chain of trust of a reader: from `ns_id` to the keys of one snapshot.
//!
//! ```text
//! ns_id -> descriptor (authority's signature, version floor) -> server's ledger key and pin
//!       -> writer certificate (record key) -> record (writer's signature)
//!       -> key block (recovery identity; body digest) -> root h and K_plain -> tree
//! ```
//!
//! Two ways in: an enrolled profile of role `restore`, which has a pin and floors, or a recovery
//! kit on a machine that knows nothing. The kit names no pin, so the first connection accepts any
//! key, and nothing that the server says counts before its ledger key stands in a verified
//! descriptor and vouches for the TLS key of that same connection. Without a floor of its own a
//! fresh machine cannot know whether it sees the newest state; it says so
//! ([`Freshness::KitFloor`]). The kit's own floor, the ledger's checkpoint at print time, must be
//! contained in what the server shows.
//!
//! `--unverified` goes on where a signature or name of this chain is wrong. The checks of the
//! envelopes follow from the key block alone and cannot be switched off.

use std::sync::Arc;

use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{
    DescriptorDigest, Label, NamespaceId, PublicKey, RecordDigest, TlsKeyDigest,
};
use strongroom_protocol::limits::{DESCRIPTOR_MAX_BYTES, PROTOCOL_VERSION};
use strongroom_protocol::message::{Identity, NamespaceRow};
use strongroom_protocol::record::{KeyBlock, Record};
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::signature::{self, SIGNATURE_BYTES, SignedType};
use strongroom_protocol::vouch::ServerTls;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::age_file::{self, AgeFileError};
use crate::error::ClientError;
use crate::fetch::Fetcher;
use crate::follow::{Follow, Keep};
use crate::history;
use crate::keys::{ConvergenceSecret, PlaintextHash, PlaintextKeys};
use crate::kit::Kit;
use crate::profile::{ConnectOptions, Profile};
use crate::sealer::NodeChild;
use crate::tls::{Pin, TlsIdentity};
use crate::transport::{Body, Client, Endpoint, parse_json};

const IDENTITY_MAX_BYTES: u64 = 64 * 1024;

/// How far back the reader's knowledge of the namespace reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// A profile's floors, which rise with each use.
    Profile,
    /// What was known when the kit was made.
    KitFloor,
    /// A replica that the descriptor does not name: nothing says how new its state is.
    Replica,
}

/// A way to read one namespace.
pub struct ReadAccess {
    /// Speaks to the server.
    pub client: Client,
    /// Which namespace.
    pub namespace: NamespaceId,
    /// Its descriptor; missing only where `--unverified` went on without a good one.
    pub descriptor: Option<VerifiedDescriptor>,
    /// Identities that may open records; empty for those who only list.
    pub identities: Vec<Zeroizing<String>>,
    /// How far back knowledge reaches.
    pub freshness: Freshness,
    /// Descriptors before the newest, newest first, as far back as records have named them.
    pub earlier: Mutex<Vec<VerifiedDescriptor>>,
    /// Source that the list named for the snapshot; nobody signed the list, so the record that is
    /// opened must say the same.
    pub wanted_source: Option<Label>,
}

/// A record whose chain was verified, or let pass on purpose.
pub struct OpenRecord {
    /// Names the snapshot.
    pub digest: RecordDigest,
    /// The record.
    pub record: Record,
    /// What the identity opened.
    pub key_block: KeyBlock,
    /// Keys of the epoch.
    pub keys: PlaintextKeys,
    /// Every link of the chain held.
    pub is_verified: bool,
}

/// Fetches the newest descriptor of the profile's namespace and verifies it; it must name the
/// server.
pub async fn fetch_descriptor(
    profile: &mut Profile,
    client: &Client,
) -> Result<VerifiedDescriptor, ClientError> {
    let descriptor = fetch_signed_descriptor(profile, client).await?;
    if !descriptor.names(&profile.settings().ledger_key) {
        return Err(ClientError::Untrusted(
            "the namespace's descriptor does not name this server's ledger key: the namespace has \
             left this server, or never was backed up to it; enrol with the one that it names \
             (--standby adds it to this profile)"
                .into(),
        ));
    }
    Ok(descriptor)
}

/// Fetches the newest descriptor of the profile's namespace, whichever server it names.
pub async fn fetch_signed_descriptor(
    profile: &mut Profile,
    client: &Client,
) -> Result<VerifiedDescriptor, ClientError> {
    let route = Route::Descriptor(profile.namespace()?);
    let bytes = client.request(&route, "", Body::empty()).await?;
    profile.accept_descriptor(&bytes)
}

/// The convergence secret that a descriptor wraps for its recipients.
pub fn open_wrapped_secret(
    descriptor: &VerifiedDescriptor,
    identities: &[Zeroizing<String>],
) -> Result<ConvergenceSecret, ClientError> {
    let wrapped = &descriptor.contents().wrapped_secret;
    let secret = age_file::open_with(&texts(identities), wrapped).map_err(age_error)?;
    let bytes: [u8; 32] = secret.as_slice().try_into().map_err(|_| {
        ClientError::Untrusted("the descriptor's wrapped secret is of another kind".into())
    })?;
    Ok(ConvergenceSecret::from_bytes(bytes))
}

impl ReadAccess {
    /// Reads the envelopes of an opened snapshot.
    pub fn fetcher(&self, opened: &OpenRecord) -> Fetcher {
        Fetcher::new(self.client.clone(), self.namespace, opened.keys.clone())
    }

    /// Reads with an enrolled profile, which must be of role `restore` to read records.
    pub async fn with_profile(
        profile: &mut Profile,
        identities: Vec<Zeroizing<String>>,
        connect: &ConnectOptions,
    ) -> Result<Self, ClientError> {
        let client = history::connect(profile, connect).await?;
        let (descriptor, freshness) = match connect.from_replica {
            false => (fetch_descriptor(profile, &client).await?, Freshness::Profile),
            true => (fetch_signed_descriptor(profile, &client).await?, Freshness::Replica),
        };
        let namespace = descriptor.namespace();
        let descriptor = Some(descriptor);
        let (earlier, wanted_source) = (Mutex::default(), None);
        Ok(Self { client, namespace, descriptor, identities, freshness, earlier, wanted_source })
    }

    /// Lists one namespace with a profile of the whole server: an operator, officer or auditor.
    pub async fn with_server_profile(
        profile: &mut Profile,
        namespace: &str,
        connect: &ConnectOptions,
    ) -> Result<Self, ClientError> {
        let client = history::connect(profile, connect).await?;
        let namespace = find_namespace(&client, namespace).await?;
        let freshness = Freshness::Profile;
        let (descriptor, identities, wanted_source) = (None, Vec::new(), None);
        let earlier = Mutex::default();
        Ok(Self { client, namespace, descriptor, identities, freshness, earlier, wanted_source })
    }

    /// Reads with nothing but a recovery kit.
    pub async fn with_kit(
        kit: &Kit,
        connect: &ConnectOptions,
        unverified: bool,
    ) -> Result<Self, ClientError> {
        let identity = TlsIdentity::of_ed25519_seed(kit.access_key.as_bytes())?;
        let servers = &connect.servers;
        let endpoint = Endpoint {
            addresses: if servers.is_empty() { kit.servers.clone() } else { servers.clone() },
            pin: Pin::Unknown,
            timeouts: connect.timeouts,
            retry: connect.retry,
            follow: None,
        };
        let mut connection = Client::new(endpoint.clone(), &identity)?.connect().await?;
        let server_key = connection.server_key();
        let route = Route::Descriptor(kit.namespace);
        let max_bytes = u64::from(DESCRIPTOR_MAX_BYTES);
        let bytes = connection.call(&route, "", Body::empty(), max_bytes).await?;
        let route = Route::Identity;
        let answer = connection.call(&route, "", Body::empty(), IDENTITY_MAX_BYTES).await?;
        let said: Identity = parse_json(&route, &answer)?;
        let descriptor =
            VerifiedDescriptor::decode_for(&bytes, &kit.namespace, kit.descriptor_version)
                .map_err(ClientError::from)
                .and_then(|descriptor| {
                    let mut trusted = descriptor.contents().ledger_keys.clone();
                    // A replica vouches for its own TLS key, and is believed nothing else: what
                    // it gives is verified against the descriptor, which the authority signed.
                    trusted.extend(connect.from_replica.then_some(said.ledger_key));
                    check_server(&said, server_key, &trusted)?;
                    Ok(descriptor)
                });
        let descriptor = tolerate(descriptor, unverified)?;
        let is_named = descriptor.as_ref().is_some_and(|known| known.names(&said.ledger_key));
        let freshness = match connect.from_replica && !is_named {
            true => Freshness::Replica,
            false => Freshness::KitFloor,
        };
        if freshness == Freshness::Replica {
            tracing::warn!(
                "the server is a replica that the descriptor does not name: nothing proves how \
                 new its state is, or that its list is complete"
            );
        }
        // Every further connection must meet the key that was just proven.
        let follow = follow_during_run(&said, server_key);
        let endpoint = Endpoint { pin: Pin::Key(server_key), follow, ..endpoint };
        let client = Client::new(endpoint, &identity)?;
        match kit.checkpoint {
            Some(floor) if floor.ledger_key == said.ledger_key => {
                tolerate(history::demand_floor(&client, &floor).await, unverified)?;
            }
            Some(_) => tracing::warn!(
                "the kit has seen another server of the namespace: it cannot tell how new the \
                 state of this one is"
            ),
            None => {}
        }
        Ok(Self {
            client,
            namespace: kit.namespace,
            descriptor,
            identities: vec![kit.identity.clone()],
            freshness,
            earlier: Mutex::default(),
            wanted_source: None,
        })
    }

    /// Fetches a record, verifies its chain, and opens its key block.
    pub async fn open_record(
        &self,
        digest: RecordDigest,
        unverified: bool,
    ) -> Result<OpenRecord, ClientError> {
        let route = Route::Record(self.namespace, digest);
        let bytes = self.client.request(&route, "", Body::empty()).await?;
        let record = Record::decode(&bytes)?;
        // No --unverified passes this: it is not the thing that was asked for.
        self.check_name(&record, digest)?;
        let is_chained = tolerate(self.check_chain(&record).await, unverified)?.is_some();
        if self.identities.is_empty() {
            return Err(ClientError::Usage(
                "no identity to open the snapshot with: give --kit FILE or --identity FILE".into(),
            ));
        }
        let plaintext =
            age_file::open_with(&texts(&self.identities), &record.key_block).map_err(age_error)?;
        let key_block = KeyBlock::decode(&plaintext)?;
        let body_digest = *blake3::hash(&record.body.encode()).as_bytes();
        let check = if key_block.body_digest == body_digest {
            Ok(())
        } else {
            Err(ClientError::Untrusted("the record's key block belongs to another record".into()))
        };
        let is_bound = tolerate(check, unverified)?.is_some();
        let is_verified = is_chained && is_bound;
        let keys = PlaintextKeys::from_plaintext_key(*key_block.plaintext_key);
        Ok(OpenRecord { digest, record, key_block, keys, is_verified })
    }

    fn check_name(&self, record: &Record, digest: RecordDigest) -> Result<(), ClientError> {
        let source = &record.body.source;
        let is_wanted = self.wanted_source.as_ref().is_none_or(|wanted| wanted == source);
        if record.digest() == digest && record.body.namespace == self.namespace && is_wanted {
            return Ok(());
        }
        Err(ClientError::Untrusted("the server sent another record than the one asked for".into()))
    }

    async fn check_chain(&self, record: &Record) -> Result<(), ClientError> {
        let Some(newest) = &self.descriptor else {
            return Err(ClientError::Untrusted("there is no verified descriptor".into()));
        };
        if record.body.epoch >= newest.contents().epoch {
            return Ok(record.verify(newest)?);
        }
        Ok(record.verify(&self.earlier_descriptor(newest, &record.body.descriptor).await?)?)
    }

    /// The descriptor with this digest in the chain that ends in the newest one. Each names the one
    /// before by its digest, so none can be slipped in, whoever has the authority key now.
    async fn earlier_descriptor(
        &self,
        newest: &VerifiedDescriptor,
        wanted: &DescriptorDigest,
    ) -> Result<VerifiedDescriptor, ClientError> {
        let mut earlier = self.earlier.lock().await;
        if let Some(found) = earlier.iter().find(|one| one.digest() == *wanted) {
            return Ok(found.clone());
        }
        loop {
            let last = earlier.last().unwrap_or(newest);
            let (version, previous) = (last.contents().version, last.contents().previous);
            if version <= 1 {
                return Err(ClientError::Untrusted(
                    "the record goes by a descriptor that is not of the namespace's chain".into(),
                ));
            }
            let route = Route::Descriptor(self.namespace);
            let query = format!("version={}", version - 1);
            let bytes = self.client.request(&route, &query, Body::empty()).await?;
            let before = VerifiedDescriptor::decode_for(&bytes, &self.namespace, 0)?;
            if before.digest() != previous || before.contents().version != version - 1 {
                return Err(ClientError::Untrusted(
                    "the server's older descriptors do not lead to the newest one".into(),
                ));
            }
            earlier.push(before.clone());
            if before.digest() == *wanted {
                return Ok(before);
            }
        }
    }
}

/// The server may roll its TLS key over while a kit reads; nobody remembers that.
fn follow_during_run(said: &Identity, met: TlsKeyDigest) -> Option<Follow> {
    let (ledger_key, keep): (_, Keep) = (said.ledger_key, Arc::new(|_| Ok(())));
    let pinned = ServerTls::vouched_by(said, &ledger_key, met)?;
    Some(Follow { ledger_key, pinned, keep })
}

impl OpenRecord {
    /// Level of the root.
    pub fn level(&self) -> u8 {
        self.record.body.root_level
    }

    /// The root, as a node above it would name it.
    pub fn root(&self) -> NodeChild {
        let private = &self.key_block.private;
        NodeChild {
            digest: self.record.body.root,
            h: PlaintextHash(*self.key_block.root_h),
            plaintext_bytes: private.plaintext_bytes.saturating_add(private.catalogue_bytes),
        }
    }
}

/// The id of the namespace that `text` names, by id or by its name on the server.
pub async fn find_namespace(client: &Client, text: &str) -> Result<NamespaceId, ClientError> {
    if let Ok(namespace) = text.parse() {
        return Ok(namespace);
    }
    let rows: Vec<NamespaceRow> = client.json(&Route::Namespaces, "", None::<&()>).await?;
    let found = rows.iter().find(|row| row.name.as_str() == text).map(|row| row.namespace);
    found.ok_or_else(|| {
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        ClientError::Usage(format!("no namespace {text}; there are: {}", names.join(", ")))
    })
}

/// Whether a role sees the whole server rather than one namespace.
pub fn is_server_role(role: Role) -> bool {
    !role.is_of_namespace()
}

/// Whether the server of a connection is one that the descriptor trusts: its ledger key is named,
/// and vouches for the connection's TLS key.
fn check_server(
    said: &Identity,
    server_key: TlsKeyDigest,
    ledger_keys: &[PublicKey],
) -> Result<(), ClientError> {
    let untrusted = |why: &str| {
        ClientError::Untrusted(format!(
            "{why}: this is not a server of the namespace; check the address, or use --server"
        ))
    };
    if said.protocol != PROTOCOL_VERSION {
        return Err(ClientError::Protocol(format!("it speaks version {}", said.protocol)));
    }
    if !ledger_keys.contains(&said.ledger_key) {
        return Err(untrusted("the server's ledger key is not in the namespace's descriptor"));
    }
    if said.tls_key != server_key {
        return Err(untrusted("the server names another TLS key than the connection's"));
    }
    let vouch: [u8; SIGNATURE_BYTES] = said
        .vouch
        .0
        .as_slice()
        .try_into()
        .map_err(|_| untrusted("the server vouches for nothing"))?;
    let mut vouched = b"SRV1".to_vec();
    vouched.extend_from_slice(&server_key.0);
    vouched.extend_from_slice(&said.ledger_key.0);
    let digest = *blake3::hash(&vouched).as_bytes();
    signature::verify(&said.ledger_key, SignedType::TlsKey, &digest, &vouch)
        .map_err(|_| untrusted("the ledger key does not vouch for the TLS key"))
}

/// Lets a broken link of the chain pass where that was typed.
fn tolerate<T>(check: Result<T, ClientError>, unverified: bool) -> Result<Option<T>, ClientError> {
    match check {
        Ok(value) => Ok(Some(value)),
        Err(error @ (ClientError::Untrusted(_) | ClientError::History(_))) if unverified => {
            tracing::warn!("not verified, and going on because of --unverified: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// An identity that is none was mistyped; one that does not open is not the right one.
fn age_error(error: AgeFileError) -> ClientError {
    match error {
        AgeFileError::Identity => ClientError::Usage(error.to_string()),
        _ => ClientError::Untrusted(error.to_string()),
    }
}

fn texts(identities: &[Zeroizing<String>]) -> Vec<&str> {
    identities.iter().map(|identity| identity.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use strongroom_protocol::message::HexBytes;

    fn identity(ledger: &SigningKey, tls_key: TlsKeyDigest) -> Identity {
        let ledger_key = crate::keys::public_key_of(ledger);
        let mut vouched = b"SRV1".to_vec();
        vouched.extend_from_slice(&tls_key.0);
        vouched.extend_from_slice(&ledger_key.0);
        let digest = *blake3::hash(&vouched).as_bytes();
        let vouch = signature::sign(ledger, SignedType::TlsKey, &digest);
        Identity {
            protocol: PROTOCOL_VERSION,
            ledger_key,
            tls_key,
            vouch: HexBytes(vouch.to_vec()),
            tls_serial: 0,
            tls_vouch: HexBytes::default(),
        }
    }

    #[test]
    fn a_server_needs_its_ledger_key_its_vouch_and_this_connection() {
        let (ledger, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let (key, other_key) = (TlsKeyDigest([3; 32]), TlsKeyDigest([4; 32]));
        let said = identity(&ledger, key);
        let known = [said.ledger_key];
        assert!(check_server(&said, key, &known).is_ok());
        assert!(check_server(&said, other_key, &known).is_err(), "another connection");
        assert!(check_server(&identity(&other, key), key, &known).is_err(), "another ledger");
        let relayed = Identity { tls_key: other_key, ..said.clone() };
        assert!(check_server(&relayed, other_key, &known).is_err(), "a vouch for another key");
        let mut forged = said;
        forged.vouch.0[0] ^= 1;
        assert!(check_server(&forged, key, &known).is_err(), "a forged vouch");
    }
}
