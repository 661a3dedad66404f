//! Namespaces and principals in memory: what every request needs before it may read anything.
//!
//! Loaded at open, changed by decisions on the writer thread, in the same breath as the rows. Its
//! size grows with clients and namespaces (hundreds), never with snapshots or chunks.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::RwLock;
use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::error::ErrorCode;
use strongroom_protocol::id::{Label, NamespaceId, PrincipalId, PublicKey, TlsKeyDigest};
use strongroom_protocol::role::Role;

use crate::error::ServerError;
use crate::principal_row::PrincipalRow;
use crate::rows::NamespaceRow;
use crate::server_keys::pin_of_ed25519;
use crate::store::Store;
use crate::store::meta::Row;
use crate::store::schema::Family;

/// A namespace of this repository.
#[derive(Debug)]
pub struct Namespace {
    /// Its number in keys.
    pub number: u32,
    /// Its row.
    pub row: NamespaceRow,
    /// Its newest descriptor.
    pub descriptor: VerifiedDescriptor,
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its id.
    pub id: PrincipalId,
    /// What it may do.
    pub role: Role,
    /// Where, for roles of one namespace.
    pub namespace: Option<NamespaceId>,
    /// The key that signs its records.
    pub signing_key: PublicKey,
}

/// The registry.
#[derive(Default)]
pub struct Registry {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    namespaces: HashMap<NamespaceId, Arc<Namespace>>,
    names: HashMap<Label, NamespaceId>,
    principals: HashMap<TlsKeyDigest, Arc<Principal>>,
    /// Since when enrolled principals have their keys, milliseconds since 1970.
    keys_ms: HashMap<PrincipalId, u64>,
    /// TLS keys in whose place their principals have others by now.
    rolled: HashMap<TlsKeyDigest, PrincipalId>,
    /// Namespaces that are gone, by the names that they had.
    dropped: HashMap<NamespaceId, Label>,
}

impl Registry {
    /// Loads all rows.
    pub fn load(store: &Store) -> Result<Self, ServerError> {
        let registry = Self::default();
        for (key, value) in all_rows(store, Family::Namespaces)? {
            let number = key.try_into().map(u32::from_be_bytes);
            let number = number.map_err(|_| ServerError::Bug("namespace key".into()))?;
            let row = NamespaceRow::decode(&value)?;
            if row.is_dropped {
                registry.state.write().dropped.insert(row.namespace, row.name);
                continue;
            }
            let newest = store.last(Family::Descriptors, &number.to_be_bytes())?;
            let (_, descriptor) =
                newest.ok_or_else(|| ServerError::Bug(format!("no descriptor of {}", row.name)))?;
            let descriptor = VerifiedDescriptor::decode_for(&descriptor, &row.namespace, 0)
                .map_err(|error| ServerError::Bug(error.to_string()))?;
            registry.add_namespace(Namespace { number, row, descriptor });
        }
        for (key, value) in all_rows(store, Family::Principals)? {
            let id = key.try_into().map(PrincipalId);
            let id = id.map_err(|_| ServerError::Bug("principal key".into()))?;
            let row = PrincipalRow::decode(&value)?;
            if row.revoked_ms == 0 {
                registry.add_principal(id, &row);
            }
        }
        Ok(registry)
    }

    /// Who has this TLS key; nobody, if it is revoked.
    pub fn principal(&self, tls_key: &TlsKeyDigest) -> Option<Arc<Principal>> {
        self.state.read().principals.get(tls_key).cloned()
    }

    /// Whether a TLS key is somebody's, or was before it rolled over.
    pub fn is_taken(&self, tls_key: &TlsKeyDigest) -> bool {
        let state = self.state.read();
        state.principals.contains_key(tls_key) || state.rolled.contains_key(tls_key)
    }

    /// A namespace by its id.
    pub fn namespace(&self, id: &NamespaceId) -> Option<Arc<Namespace>> {
        self.state.read().namespaces.get(id).cloned()
    }

    /// A namespace by its name here.
    pub fn namespace_named(&self, name: &Label) -> Option<Arc<Namespace>> {
        let state = self.state.read();
        state.names.get(name).and_then(|id| state.namespaces.get(id)).cloned()
    }

    /// The name that a namespace had before it was dropped; nothing, if it is here.
    pub fn dropped_name(&self, id: &NamespaceId) -> Option<Label> {
        let state = self.state.read();
        state.dropped.get(id).filter(|_| !state.namespaces.contains_key(id)).cloned()
    }

    /// A namespace that is gone, by its id or the name that it had.
    pub fn dropped(&self, text: &str) -> Option<NamespaceId> {
        let state = self.state.read();
        let is_gone = |id: &NamespaceId| !state.namespaces.contains_key(id);
        let mut gone = state.dropped.iter().filter(|(id, _)| is_gone(id));
        gone.find(|(id, name)| name.as_str() == text || id.to_string() == text).map(|(id, _)| *id)
    }

    /// All namespaces, by name.
    pub fn namespaces(&self) -> Vec<Arc<Namespace>> {
        let mut all: Vec<_> = self.state.read().namespaces.values().cloned().collect();
        all.sort_by(|a, b| a.row.name.cmp(&b.row.name));
        all
    }

    /// Adds a namespace, and the principal that its kit's access key is.
    pub fn add_namespace(&self, namespace: Namespace) {
        let mut state = self.state.write();
        let id = namespace.row.namespace;
        let access_key = namespace.descriptor.contents().access_key;
        let kit = Principal {
            id: kit_principal(&id),
            role: Role::Restore,
            namespace: Some(id),
            signing_key: access_key,
        };
        state.principals.insert(pin_of_ed25519(&access_key), Arc::new(kit));
        state.names.insert(namespace.row.name.clone(), id);
        state.namespaces.insert(id, Arc::new(namespace));
    }

    /// Adds a principal.
    pub fn add_principal(&self, id: PrincipalId, row: &PrincipalRow) {
        let PrincipalRow { role, namespace, signing_key, .. } = row.clone();
        let principal = Principal { id, role, namespace, signing_key };
        let mut state = self.state.write();
        state.principals.insert(row.tls_key, Arc::new(principal));
        state.keys_ms.insert(id, row.keys_ms);
        state.rolled.retain(|_, owner| *owner != id);
        if let Some(former) = row.former_tls_key {
            state.rolled.insert(former, id);
        }
    }

    /// Gives a principal the keys of its row, in the place of those that it had.
    pub fn replace_keys(&self, id: PrincipalId, row: &PrincipalRow) {
        self.state.write().principals.retain(|_, principal| principal.id != id);
        self.add_principal(id, row);
    }

    /// Whose TLS key this was, before another took its place.
    pub fn former_owner(&self, tls_key: &TlsKeyDigest) -> Option<PrincipalId> {
        self.state.read().rolled.get(tls_key).copied()
    }

    /// Since when a principal has its keys, milliseconds since 1970; nothing for the access key of
    /// a kit, which no enrolment gave.
    pub fn keys_ms(&self, id: &PrincipalId) -> Option<u64> {
        self.state.read().keys_ms.get(id).copied()
    }

    /// Puts another row, with another policy, in the place of a namespace's.
    pub fn replace_row(&self, id: &NamespaceId, row: NamespaceRow) {
        let mut state = self.state.write();
        if let Some(namespace) = state.namespaces.get_mut(id) {
            let (number, descriptor) = (namespace.number, namespace.descriptor.clone());
            *namespace = Arc::new(Namespace { number, row, descriptor });
        }
    }

    /// Puts a newer descriptor in the place of a namespace's, and the access key that it names in
    /// the place of the one before.
    pub fn replace_descriptor(&self, descriptor: VerifiedDescriptor) {
        let id = descriptor.namespace();
        let Some(before) = self.namespace(&id) else { return };
        let access_key = before.descriptor.contents().access_key;
        self.state.write().principals.remove(&pin_of_ed25519(&access_key));
        let (number, row) = (before.number, before.row.clone());
        self.add_namespace(Namespace { number, row, descriptor });
    }

    /// Takes a namespace out, and everybody who belongs to it.
    pub fn remove_namespace(&self, id: &NamespaceId) {
        let mut state = self.state.write();
        if let Some(namespace) = state.namespaces.remove(id) {
            state.names.remove(&namespace.row.name);
            state.dropped.insert(*id, namespace.row.name.clone());
        }
        state.principals.retain(|_, principal| principal.namespace != Some(*id));
        state.forget_gone();
    }

    /// For decisions: the namespace as it is now, if it is still there and who asked still stands.
    /// A request was authorised before its body was read, and much may have been decided since.
    pub fn standing(
        &self,
        principal: &Principal,
        namespace: &NamespaceId,
    ) -> Result<Arc<Namespace>, ServerError> {
        self.refuse_fallen(principal)?;
        self.namespace(namespace).ok_or_else(ServerError::not_found)
    }

    /// For decisions: refuses a principal that was revoked since its request was authorised.
    pub fn refuse_fallen(&self, principal: &Principal) -> Result<(), ServerError> {
        let state = self.state.read();
        let stands = state.principals.values().any(|known| **known == *principal);
        if stands || principal.id == PrincipalId::LOCAL {
            return Ok(());
        }
        Err(ServerError::peer(ErrorCode::UnknownPrincipal, "this key was revoked"))
    }

    /// The key with which a principal signs; nothing, if it is not enrolled.
    pub fn signing_key(&self, id: &PrincipalId) -> Option<PublicKey> {
        let state = self.state.read();
        state.principals.values().find(|known| known.id == *id).map(|known| known.signing_key)
    }

    /// Takes a principal out; its next request finds nobody.
    pub fn remove_principal(&self, tls_key: &TlsKeyDigest) {
        let mut state = self.state.write();
        state.principals.remove(tls_key);
        state.forget_gone();
    }
}

impl State {
    /// Forgets about the keys of principals that are none any more.
    fn forget_gone(&mut self) {
        let here: HashSet<PrincipalId> =
            self.principals.values().map(|principal| principal.id).collect();
        self.keys_ms.retain(|id, _| here.contains(id));
        self.rolled.retain(|_, id| here.contains(id));
    }
}

/// The id under which reads with a namespace's kit are entered in the ledger.
fn kit_principal(namespace: &NamespaceId) -> PrincipalId {
    let digest = blake3::derive_key("strongroom v1 kit principal", &namespace.0);
    let mut id = [0; 16];
    id.copy_from_slice(digest.first_chunk::<16>().unwrap_or(&[0; 16]));
    PrincipalId(id)
}

/// All rows of a family that is known to be small.
pub fn all_rows(store: &Store, family: Family) -> Result<Vec<Row>, ServerError> {
    let mut rows = Vec::new();
    store.scan(family, &[], None, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}
