//! Who lives, and whose a grant is: decided, without IO.

use std::{collections::HashMap, time::Duration};

use crate::{
    clock::{Instant, Watched},
    store::{BootId, GrantId, Replica},
};

/// Whose beat stands still for so long does no work that others could do: it shows itself each second.
const QUIET: Duration = Duration::from_secs(5);

/// Whose beat stands still for so long is gone, and nothing waits for it any more.
const GONE: Duration = Duration::from_secs(30);

/// Who could not look for longer has not seen anybody stand still.
const GAP: Duration = Duration::from_secs(3);

/// The other processes' beats, as they were seen.
#[derive(Default)]
pub(super) struct Others(HashMap<BootId, Watched<i64>>);

/// The processes on the store's list.
#[derive(Default)]
pub(super) struct Seen {
    pub living: Vec<Replica>,
    /// Those that have not certainly gone.
    pub present: Vec<Replica>,
    /// Those that have, without a word.
    pub gone: Vec<Replica>,
}

impl Others {
    pub(super) fn see(&mut self, shown: Vec<Replica>, me: BootId, now: Instant) -> Seen {
        self.0.retain(|boot, _| shown.iter().any(|it| it.boot == *boot));
        let Seen { mut living, mut present, mut gone } = Seen::default();
        for replica in shown {
            let beat = self.0.entry(replica.boot).or_insert_with(|| Watched::new(replica.beat, now));
            beat.see(replica.beat, GAP, now);
            let stands = |patience| replica.boot != me && beat.still_at(patience) <= now;
            if !stands(QUIET) {
                living.push(replica.clone());
            }
            match stands(GONE) {
                false => present.push(replica),
                true => gone.push(replica),
            }
        }
        Seen { living, present, gone }
    }
}

/// Whose a grant is, by the highest random weight: whoever comes or goes takes or leaves his share only.
pub(super) fn first(living: impl Iterator<Item = BootId>, grant: GrantId) -> Option<BootId> {
    living.max_by_key(|boot| (weight(*boot, grant), *boot))
}

/// The same in each process and each version.
fn weight(boot: BootId, grant: GrantId) -> u64 {
    let ((a, b), (c, d)) = (boot.0.as_u64_pair(), grant.0.as_u64_pair());
    [a, b, c, d].into_iter().fold(0, |mixed, part| mix(mixed ^ part))
}

/// The finaliser of SplitMix64: each bit of its input turns half of its output.
const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::ReplicaFacts;

    fn boot(n: u128) -> BootId {
        BootId(Uuid::from_u128(n))
    }

    fn shown(beats: &[(u128, i64)]) -> Vec<Replica> {
        beats.iter().map(|(n, beat)| Replica { boot: boot(*n), beat: *beat, facts: ReplicaFacts::default() }).collect()
    }

    /// After how many seconds which beats are shown, who lives, and who has not certainly gone.
    type Look<'a> = (u64, &'a [(u128, i64)], &'a [u128], &'a [u128]);

    /// What process 1 sees.
    fn see(looks: &[Look<'_>]) {
        let (mut others, start) = (Others::default(), Instant::now());
        let boots = |replicas: Vec<Replica>| replicas.into_iter().map(|it| it.boot).collect::<Vec<_>>();
        let named = |numbers: &[u128]| numbers.iter().map(|n| boot(*n)).collect::<Vec<_>>();
        for (seconds, beats, lives, stays) in looks {
            let seen = others.see(shown(beats), boot(1), start + Duration::from_secs(*seconds));
            let Seen { living, present, gone } = seen;
            assert_eq!(present.len() + gone.len(), beats.len(), "after {seconds} s");
            assert_eq!(boots(living), named(lives), "after {seconds} s");
            assert_eq!(boots(present), named(stays), "after {seconds} s");
        }
    }

    #[test]
    fn whose_beat_stands_still_is_gone_until_it_beats_again() {
        see(&[
            (0, &[(1, 1), (2, 7)], &[1, 2], &[1, 2]),
            (2, &[(1, 2), (2, 7)], &[1, 2], &[1, 2]),
            (4, &[(1, 3), (2, 7)], &[1, 2], &[1, 2]),
            (5, &[(1, 4), (2, 7)], &[1], &[1, 2]),
            (7, &[(1, 4), (2, 8)], &[1, 2], &[1, 2]),
            (8, &[(1, 5)], &[1], &[1]),
            // It began anew, from a lower beat.
            (9, &[(1, 6), (2, 1)], &[1, 2], &[1, 2]),
        ]);
        let silent: Vec<_> = (0..=15_u64).map(|n| (n * 2, [(1, i64::try_from(n).unwrap()), (2, 7)])).collect();
        let looks: Vec<Look<'_>> = silent
            .iter()
            .map(|(seconds, beats)| {
                let lives: &[u128] = if *seconds < 5 { &[1, 2] } else { &[1] };
                let stays: &[u128] = if *seconds < 30 { &[1, 2] } else { &[1] };
                (*seconds, beats.as_slice(), lives, stays)
            })
            .collect();
        see(&looks);
    }

    #[test]
    fn who_could_not_look_has_seen_nobody_die() {
        see(&[
            (0, &[(1, 1), (2, 7)], &[1, 2], &[1, 2]),
            (60, &[(1, 2), (2, 7)], &[1, 2], &[1, 2]),
            (62, &[(1, 3), (2, 7)], &[1, 2], &[1, 2]),
            (65, &[(1, 4), (2, 7)], &[1], &[1, 2]),
        ]);
    }

    #[test]
    fn shares_are_even_and_move_only_with_who_comes_or_goes() {
        let grants: Vec<_> = (0..9000_u128).map(|n| GrantId(Uuid::from_u128(n << 64 | 0x7000))).collect();
        let three = [11, 12, 13].map(boot);
        let owner = |among: &[BootId], grant| first(among.iter().copied(), grant).unwrap();
        for one in three {
            let share = grants.iter().filter(|grant| owner(&three, **grant) == one).count();
            assert!((2800..3200).contains(&share), "{share} of 9000");
        }
        for grant in grants {
            let (before, after) = (owner(&three, grant), owner(&three[..2], grant));
            assert!(before == three[2] || before == after);
        }
    }
}
