//! What this process tells the others of itself: its seal keys, what its spill needs, whom EHRs refuse, and what
//! operators have told it.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use uuid::Uuid;

use super::registrar::Registrar;
use crate::{
    custody::SpillKeys,
    replicas::Voice,
    store::{Replica, ReplicaFacts, StoreResult, rotation::SealRotation},
};

pub(super) struct ProcessVoice {
    pub rotation: Arc<SealRotation>,
    /// The spill's name, and the seal keys that it needs.
    pub spill: Option<(Uuid, Arc<SpillKeys>)>,
    /// Set when custody is there, which must know the others first.
    pub registrar: OnceLock<Arc<Registrar>>,
}

#[async_trait]
impl Voice for ProcessVoice {
    fn facts(&self) -> ReplicaFacts {
        // Which key writes is read before which ones the spill needs: what the one before has sealed is among those.
        let facts = Voice::facts(&*self.rotation);
        let told = self.registrar.get().map(|it| (it.shown(), it.deaths_seen(), it.told()));
        let (refused, deaths, confirmed) = told.unwrap_or_default();
        ReplicaFacts {
            spill: self.spill.as_ref().map(|(id, _)| *id),
            spill_keys: self.spill.as_ref().map(|(_, keys)| keys.ids()).unwrap_or_default(),
            refused,
            deaths,
            confirmed,
            ..facts
        }
    }

    async fn joined(&self) -> StoreResult<()> {
        self.rotation.joined().await
    }

    async fn looked(&self, present: &[Replica], gone: &[Replica]) -> StoreResult<()> {
        self.rotation.looked(present, gone).await
    }
}
