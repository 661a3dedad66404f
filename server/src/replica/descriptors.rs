//! Descriptors of namespaces, as a primary has them.
//!
//! They are believed because the authority signed them, and taken only one after the other
//! (`repository/descriptors.rs`), whichever primary has them: that is how a server learns that a
//! namespace has moved, also from one that it takes nothing else of.

use strongroom_protocol::descriptor::VerifiedDescriptor;
use strongroom_protocol::id::{DescriptorDigest, NamespaceId, RecordDigest};
use strongroom_protocol::record::RecordBody;

use super::blocking;
use super::error::ReplicaError;
use super::follow::Follower;
use crate::replica_rows::PrimaryRow;
use crate::repository::backdated::Backdated;
use crate::repository::descriptors::Outcome;
use crate::repository::replication::Step;

impl Follower {
    /// Whether what this primary commits to a namespace is taken over.
    pub(super) fn takes(&self, row: &PrimaryRow, namespace: &NamespaceId) -> bool {
        let here = self.repository.registry().namespace(namespace);
        here.is_none_or(|here| self.repository.takes_from(&here, &row.ledger_key))
    }

    /// The newest descriptor of a namespace here; the namespace is made, if it is not there.
    pub(super) async fn descriptor(
        &mut self,
        row: &PrimaryRow,
        namespace: &NamespaceId,
    ) -> Result<VerifiedDescriptor, ReplicaError> {
        if let Some(here) = self.repository.registry().namespace(namespace) {
            return Ok(here.descriptor.clone());
        }
        let first = self.fetch(namespace, Some(1)).await?;
        let unlisted = || ReplicaError::Wrong(format!("namespace {namespace} is not listed"));
        let name = self.name_of(namespace).await?.ok_or_else(unlisted)?;
        let (repository, primary, made) = (self.repository.clone(), row.clone(), first.clone());
        blocking(move || Ok(repository.receive_namespace(&primary, &name, made)?)).await?;
        self.bring_descriptors(namespace).await?;
        let here = self.repository.registry().namespace(namespace);
        Ok(here.map_or(first, |here| here.descriptor.clone()))
    }

    /// The descriptor that a record goes by, which this server must have, or gets now.
    pub(super) async fn demand_descriptor(
        &mut self,
        namespace: &NamespaceId,
        descriptor: DescriptorDigest,
    ) -> Result<VerifiedDescriptor, ReplicaError> {
        for is_newest in [false, true] {
            let id = *namespace;
            let here = self.here(move |r| r.descriptor_with(&id, &descriptor)).await?;
            if let Some(here) = here {
                return Ok(here);
            }
            if !is_newest {
                self.bring_descriptors(namespace).await?;
            }
        }
        Err(ReplicaError::Wrong("a record goes by a descriptor that is not of its chain".into()))
    }

    /// Notes where in the primary's ledger a descriptor stands, if it is of a namespace that is
    /// followed. A first one ends nothing.
    pub(super) async fn note_descriptor(
        &mut self,
        row: &PrimaryRow,
        leaf: u64,
        namespace: &NamespaceId,
        version: u64,
    ) -> Result<(), ReplicaError> {
        if version < 2 || !self.is_wanted(row, leaf, namespace).await? {
            return Ok(());
        }
        let (primary, key, id) = (self.primary.clone(), row.ledger_key, *namespace);
        self.here(move |r| r.note_descriptor(&primary, &key, &id, (version, leaf))).await
    }

    /// Refuses a record of an epoch that had ended where it stands in the primary's ledger.
    pub(super) async fn check_place(
        &self,
        row: &PrimaryRow,
        leaf: u64,
        (digest, body): (RecordDigest, &RecordBody),
    ) -> Result<(), ReplicaError> {
        let (key, asked) = (row.ledger_key, body.clone());
        let later = self.here(move |r| r.later_epoch_before(&key, leaf, &asked)).await?;
        let Some(epoch) = later else { return Ok(()) };
        tracing::error!(
            primary = %self.primary.name, namespace = %body.namespace, leaf,
            "ALARM: the primary took a record of epoch {} after epoch {epoch} had begun: it is \
             captured, and somebody has the secret of that epoch, or it brought the snapshot from \
             another server late",
            body.epoch
        );
        let name = self.primary.name.as_str();
        self.repository.metrics().replica.backdated_records.with_label_values(&[name]).inc();
        let refused = Backdated { namespace: body.namespace, record: digest, leaf, epoch };
        let row = row.clone();
        self.here(move |r| r.enter_backdated(&row, refused)).await?;
        Err(ReplicaError::Wrong(format!(
            "a record of epoch {} stands behind the beginning of epoch {epoch} in its ledger",
            body.epoch
        )))
    }

    /// Does what an entry about a descriptor leads to here; true if the position was stored too.
    pub(super) async fn take_descriptor(
        &mut self,
        namespace: NamespaceId,
        (descriptor, version): (DescriptorDigest, u64),
        step: &Step,
    ) -> Result<bool, ReplicaError> {
        let Some(here) = self.repository.registry().namespace(&namespace) else {
            // All its versions come with its first snapshot.
            return Ok(false);
        };
        if self.source.folder().is_some_and(|folder| folder.namespace(&namespace).is_none()) {
            return Ok(false); // an export of other namespaces
        }
        let mut is_here = here.descriptor.contents().version >= version;
        if !is_here {
            match self.bring_descriptors(&namespace).await {
                Ok(()) => is_here = self.newest_version(&namespace) >= version,
                // It was dropped there since, or was never there.
                Err(error) if error.is_not_found() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if is_here
            && self.here(move |r| r.descriptor_with(&namespace, &descriptor)).await?.is_some()
        {
            return Ok(false);
        }
        if here.descriptor.contents().version >= version {
            self.alarm(&namespace, version);
        }
        let (primary, step) = (self.primary.clone(), step.clone());
        let refused = (descriptor, version);
        self.here(move |r| r.refuse_descriptor(&primary, step, namespace, refused)).await?;
        Ok(true)
    }

    /// Takes the versions that the primary has and this server lacks, one after the other.
    async fn bring_descriptors(&mut self, namespace: &NamespaceId) -> Result<(), ReplicaError> {
        let newest = self.fetch(namespace, None).await?.contents().version;
        let known = self.newest_version(namespace);
        for version in known.saturating_add(1)..=newest {
            let next = self.fetch(namespace, Some(version)).await?;
            let (repository, primary) = (self.repository.clone(), self.primary.clone());
            let outcome =
                blocking(move || Ok(repository.receive_descriptor(&primary, next)?)).await?;
            if outcome == Outcome::Refused {
                self.alarm(namespace, version);
                return Ok(());
            }
            tracing::info!(%namespace, version, "a newer descriptor was taken");
        }
        Ok(())
    }

    fn newest_version(&self, namespace: &NamespaceId) -> u64 {
        let here = self.repository.registry().namespace(namespace);
        here.map_or(0, |here| here.descriptor.contents().version)
    }

    async fn fetch(
        &self,
        namespace: &NamespaceId,
        version: Option<u64>,
    ) -> Result<VerifiedDescriptor, ReplicaError> {
        let bytes = self.source.descriptor(namespace, version).await?;
        let descriptor = VerifiedDescriptor::decode_for(&bytes, namespace, 0)
            .map_err(|error| ReplicaError::Wrong(error.to_string()))?;
        if version.is_some_and(|version| version != descriptor.contents().version) {
            return Err(ReplicaError::Wrong("another version of a descriptor came".into()));
        }
        Ok(descriptor)
    }

    fn alarm(&self, namespace: &NamespaceId, version: u64) {
        let name = &self.primary.name;
        tracing::error!(
            primary = %name, %namespace, version,
            "ALARM: the primary's descriptor does not come after the one that is here; it was not \
             taken. Was the authority key used twice, or stolen?"
        );
        let refused = &self.repository.metrics().replica.refused_descriptors;
        refused.with_label_values(&[name.as_str()]).inc();
    }
}
