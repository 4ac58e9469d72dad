//! What happens though nobody asks: the wheel's turns, and what is read after a start.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use super::{
    CustodyFault, Inner, entry,
    machine::{Action, Cause, Event},
    refresh::Job,
};
use crate::store::{BootId, Grant, GrantId};

/// What nobody used for so long is forgotten; the store knows it.
const FORGET_AFTER: Duration = Duration::from_secs(30 * 60);
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Grants read at once after a start.
const PAGE: u32 = 500;

impl Inner {
    pub(super) async fn turn(self: Arc<Self>) {
        let mut tidy = tokio::time::interval(TIDY_EVERY);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                mut due = self.wheel.due() => {
                    // Who comes first gets the room that there is.
                    due.sort_by_cached_key(|id| Reverse(self.table.get(*id).map(|entry| entry.last_use())));
                    for id in due {
                        self.wake(id).await;
                    }
                }
                due = self.budgets.due() => {
                    for id in due {
                        self.wake(id).await;
                    }
                }
                _ = tidy.tick() => self.table.tidy(FORGET_AFTER, self.now()),
            }
        }
    }

    async fn wake(self: &Arc<Self>, id: GrantId) {
        let entry = match self.known(id).await {
            Ok(entry) => entry,
            Err(CustodyFault::Ended(_)) => return,
            Err(_) => return self.wheel.set_if_none(id, self.now() + Duration::from_secs(5)),
        };
        let now = self.now();
        let mut room = None;
        if let Some(used) = entry.would_fly(now) {
            room = self.budgets.ask(&entry.budget, id, used, now);
            if room.is_none() {
                return;
            }
        }
        let (action, flight) = entry.step(Event::Woken, now);
        match action {
            Action::Fly => {
                let room = room.unwrap_or_else(|| self.budgets.begin(&entry.budget, now));
                drop(self.start_in(&entry, flight, Job::Refresh, room));
            }
            Action::End(reason) => drop(self.start(&entry, flight, Job::End(reason))),
            Action::Sleep(at) => self.wheel.set(id, Some(at)),
            _ => {}
        }
    }

    /// Reads the store after a start, and whenever a process has come or gone: its share is another's then.
    pub(super) async fn share(self: Arc<Self>) {
        let mut changes = self.context.replicas.changes();
        let mut among: Option<Vec<BootId>> = None;
        loop {
            let living: Vec<_> = changes.borrow_and_update().iter().map(|replica| replica.boot).collect();
            // What the others say of themselves moves no share.
            if among.as_ref() != Some(&living) {
                self.read_all().await;
                among = Some(living);
            }
            let changed = self.stop.run_until_cancelled(changes.changed()).await;
            if !matches!(changed, Some(Ok(()))) {
                return;
            }
        }
    }

    /// Finds the grants that must not wait for their next use: doubtful ones, those that end by time, those
    /// whose refresh token dies with the access token.
    async fn read_all(&self) {
        let (mut after, mut failures) = (None, 0);
        loop {
            let page = tokio::select! {
                () = self.stop.cancelled() => return,
                page = self.context.store.grants_after(after, PAGE) => page,
            };
            match page {
                Ok(page) => {
                    let Some(last) = page.last() else { return };
                    after = Some(last.id);
                    failures = 0;
                    for grant in &page {
                        self.note(grant);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the grants cannot be read; trying again");
                    failures += 1;
                    let wait = Cause::Store.wait(failures, None, u32::MAX);
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    pub(super) fn note(&self, grant: &Grant) {
        if !self.context.replicas.first_for(grant.id) {
            return;
        }
        let now = self.now();
        // Its turn is set when the store has its answer.
        if self.overlaid(grant).is_some() {
            return;
        }
        let policy = self.context.policies.of(grant);
        let (rules, state) = entry::read(grant, policy.as_ref(), self.among(grant.id), self.context.clock.now(), now);
        let wake = if state.needs_wheel(&rules) { state.next_wake(&rules, now) } else { state.keep_by() };
        if let Some(at) = wake {
            self.wheel.set_if_none(grant.id, at);
        }
    }
}
