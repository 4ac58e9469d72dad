//! Deaths are rationed: an EHR that refuses a whole registration logs nobody out.

use futures_util::future::join_all;
use mantel_adapters::profile::Meaning;

use super::{
    many::Many,
    town::{Town, dead},
    world::{Reply, epic, pass, refuse, secs},
};
use crate::{
    custody::{CustodyFault, RefreshAnswer, RefreshOutcome},
    store::{EndReason, GrantId, GrantState},
};

const DEAD: CustodyFault = CustodyFault::Ended(EndReason::Dead);

/// Grants in use whose access tokens have just expired.
async fn expired(count: usize) -> (Town, Vec<GrantId>) {
    let town = Town::new(300, epic()).await;
    let grants = town.grants(count).await;
    tokio::time::advance(secs(300)).await;
    (town, grants)
}

/// All are refused, and the registration is suspect.
async fn refused(count: usize) -> (Town, Vec<GrantId>) {
    let (town, grants) = expired(count).await;
    town.hospital.says(Some(dead()));
    for grant in &grants {
        told_to_wait(&town, *grant).await;
    }
    assert_eq!(town.counted().suspect, [("general".to_owned(), true)]);
    (town, grants)
}

async fn told_to_wait(town: &Town, grant: GrantId) {
    match town.bearer(grant).await.unwrap_err() {
        CustodyFault::Unavailable { retry_after } | CustodyFault::Suspect { retry_after } => {
            assert!((secs(1)..=secs(30)).contains(&retry_after), "{retry_after:?}");
        }
        other => panic!("{other:?}"),
    }
}

async fn all_live(town: &Town, grants: &[GrantId]) {
    for grant in grants {
        assert_eq!(town.state(*grant).await, GrantState::Live);
    }
    assert!(town.counted().ended.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_ehr_that_refuses_a_registration_logs_nobody_out_and_service_resumes_by_itself() {
    let (town, grants) = refused(20).await;
    assert_eq!(town.hospital.calls(), 6, "the others are not tried");
    assert_eq!(town.counted().refreshes[&RefreshOutcome::Presumed], 5);
    assert!(matches!(town.bearer(grants[19]).await, Err(CustodyFault::Suspect { .. })));
    // One tries after 1 minute, and after 2 more.
    for (minutes, calls) in [(1, 7), (2, 8)] {
        pass(60 * minutes - 1).await;
        assert_eq!(town.hospital.calls(), calls - 1);
        tokio::time::advance(secs(1)).await;
        town.hospital.called(calls).await;
        town.landed().await;
    }
    all_live(&town, &grants).await;
    town.hospital.says(None);
    pass(239).await;
    assert_eq!(town.hospital.calls(), 8);
    tokio::time::advance(secs(1)).await;
    // The success of one frees all; they are in use, so nobody need ask.
    town.until(|counted| counted.refreshes.get(&RefreshOutcome::Renewed) == Some(&20)).await;
    assert_eq!(town.counted().suspect, [("general".to_owned(), true), ("general".to_owned(), false)]);
    for grant in &grants {
        assert_eq!(town.bearer(*grant).await.unwrap().token.expose(), &format!("access {grant}.2"));
    }
    all_live(&town, &grants).await;
}

#[tokio::test(start_paused = true)]
async fn all_refused_at_once_are_no_more_than_a_few_presumed() {
    let (town, grants) = expired(50).await;
    town.hospital.says(Some(dead()));
    let faults = join_all(grants.iter().map(|grant| town.bearer(*grant))).await;
    assert!(
        faults
            .iter()
            .all(|fault| { matches!(fault, Err(CustodyFault::Unavailable { .. } | CustodyFault::Suspect { .. })) })
    );
    // Long enough for every window to close, and for people to go on trying.
    for _ in 0..30 {
        pass(60).await;
        for grant in &grants {
            told_to_wait(&town, *grant).await;
        }
    }
    all_live(&town, &grants).await;
}

#[tokio::test(start_paused = true)]
async fn one_death_among_many_lives_is_told_as_soon_as_another_is_renewed() {
    let (town, grants) = expired(10).await;
    town.hospital.buries(grants[0]);
    told_to_wait(&town, grants[0]).await;
    told_to_wait(&town, grants[0]).await;
    assert_eq!(town.hospital.calls(), 1);
    assert!(town.bearer(grants[1]).await.is_ok());
    // It was in use: it is tried once more though nobody asks.
    town.until(|counted| counted.ended == [EndReason::Dead]).await;
    assert_eq!(town.bearer(grants[0]).await.unwrap_err(), DEAD);
    assert_eq!(town.hospital.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_passing_blackout_of_a_few_ends_none_of_them() {
    let (town, grants) = expired(10).await;
    town.hospital.says(Some(dead()));
    for grant in &grants[..4] {
        told_to_wait(&town, *grant).await;
    }
    town.hospital.says(None);
    assert!(town.bearer(grants[9]).await.is_ok());
    town.until(|counted| counted.refreshes.get(&RefreshOutcome::Renewed) == Some(&5)).await;
    for grant in &grants {
        assert!(town.bearer(*grant).await.is_ok());
    }
    assert!(town.counted().ended.is_empty() && town.counted().suspect.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_death_that_nothing_explains_is_believed_when_its_window_closes() {
    let (town, grants) = expired(10).await;
    town.hospital.buries(grants[0]);
    told_to_wait(&town, grants[0]).await;
    pass(599).await;
    told_to_wait(&town, grants[0]).await;
    tokio::time::advance(secs(1)).await;
    town.until(|counted| counted.ended == [EndReason::Dead]).await;
    assert_eq!(town.bearer(grants[0]).await.unwrap_err(), DEAD);
}

#[tokio::test(start_paused = true)]
async fn while_the_old_token_lives_a_refusal_is_nobodys_business() {
    let town = Town::new(300, epic()).await;
    let grants = town.grants(10).await;
    town.hospital.says(Some(dead()));
    tokio::time::advance(secs(200)).await;
    for grant in &grants {
        assert!(town.bearer(*grant).await.is_ok());
    }
    town.until(|counted| !counted.suspect.is_empty()).await;
    town.landed().await;
    pass(99).await;
    for grant in &grants {
        assert!(town.bearer(*grant).await.is_ok());
    }
    all_live(&town, &grants).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_ends_nobody() {
    let (mut town, grants) = refused(10).await;
    town.reboot().await;
    for grant in &grants {
        told_to_wait(&town, *grant).await;
    }
    assert_eq!(town.counted().suspect, [("general".to_owned(), true)], "it is learnt again");
    town.hospital.says(None);
    tokio::time::advance(secs(60)).await;
    town.until(|counted| counted.refreshes.get(&RefreshOutcome::Renewed) == Some(&10)).await;
    all_live(&town, &grants).await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_confirms_the_deaths() {
    let (town, grants) = refused(10).await;
    let registration = "viewer-epic".parse().unwrap();
    let refusals = town.custody.refusals();
    let [refusal] = refusals.as_slice() else { panic!("{refusals:?}") };
    assert_eq!((refusal.refused, refusal.waiting, refusal.answer.as_deref()), (6, 4, Some("400 invalid_grant")));
    let suspicion = refusal.suspicion.unwrap();
    assert_eq!((suspicion.next - suspicion.since, refusal.confirmed), (secs(60), None));
    // One was not dead: it is tried like the others.
    town.hospital.says(None);
    grants[1..].iter().for_each(|grant| town.hospital.buries(*grant));
    // Said of another site, or longer ago than an hour, it is nothing.
    let (general, other) = ("general".parse().unwrap(), "other".parse().unwrap());
    assert_eq!(town.custody.confirm_deaths(&registration, Some(&other), secs(0)).await, 0);
    assert_eq!(town.custody.confirm_deaths(&registration, None, secs(3600)).await, 0);
    assert_eq!(town.custody.refusals(), refusals);
    assert_eq!(town.custody.confirm_deaths(&registration, Some(&general), secs(0)).await, 6);
    town.until(|counted| counted.ended.len() == 9).await;
    assert_eq!(town.custody.refusals(), []);
    assert_eq!(town.counted().suspect.last(), Some(&("general".to_owned(), false)));
    assert!(town.bearer(grants[0]).await.is_ok());
    for grant in &grants[1..] {
        assert_eq!(town.bearer(*grant).await.unwrap_err(), DEAD);
    }
    assert_eq!(town.custody.confirm_deaths(&"another".parse().unwrap(), None, secs(0)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn within_an_hour_of_a_change_even_the_first_of_a_few_waits() {
    let (town, grants) = expired(2).await;
    let registration = "viewer-epic".parse().unwrap();
    town.custody.registration_changed(&registration, secs(0));
    town.hospital.buries(grants[0]);
    told_to_wait(&town, grants[0]).await;
    assert!(town.bearer(grants[1]).await.is_ok());
    town.hospital.called(3).await;
    town.landed().await;
    pass(60).await;
    told_to_wait(&town, grants[0]).await;
    pass(540).await;
    town.until(|counted| counted.ended == [EndReason::Dead]).await;
    // Without a change nothing is waited for: so few cannot make it suspect.
    let (town, grants) = expired(2).await;
    town.custody.registration_changed(&registration, secs(3600));
    town.hospital.buries(grants[0]);
    assert_eq!(town.bearer(grants[0]).await.unwrap_err(), DEAD);
    assert_eq!(town.hospital.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_one_try_after_an_unknown_outcome_is_not_spent_on_a_suspect_registration() {
    let (town, grants) = expired(10).await;
    town.hospital.says(Some(RefreshAnswer::Unknown));
    assert!(town.bearer(grants[9]).await.is_err());
    assert!(matches!(town.state(grants[9]).await, GrantState::InDoubt { retried: false, .. }));
    town.hospital.says(Some(dead()));
    for grant in &grants[..9] {
        told_to_wait(&town, *grant).await;
    }
    assert_eq!(town.hospital.calls(), 7);
    pass(59).await;
    tokio::time::advance(secs(1)).await;
    // The suspect registration's own try.
    town.hospital.called(8).await;
    town.landed().await;
    told_to_wait(&town, grants[9]).await;
    assert!(matches!(town.state(grants[9]).await, GrantState::InDoubt { retried: false, .. }));
    assert!(town.hospital.calls.borrow().iter().filter(|(id, _)| *id == grants[9]).count() == 1);
    town.hospital.says(None);
    pass(120).await;
    town.until(|counted| counted.refreshes.get(&RefreshOutcome::Renewed) == Some(&10)).await;
    assert!(town.bearer(grants[9]).await.is_ok());
    assert!(town.counted().ended.is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_an_ehr_that_refuses_all_several_processes_see_a_few_each_and_end_none() {
    const GRANTS: usize = 15;
    let many = Many::new(3, 300, epic()).await;
    let mut grants = Vec::new();
    for _ in 0..GRANTS {
        grants.push(many.world.grant().await);
    }
    // Each app asks always the same process.
    for (n, grant) in grants.iter().enumerate() {
        many.access(n % 3, *grant).await;
    }
    many.world.ehr.only((0..100).map(|_| refuse(Meaning::Dead)));
    // Those that are another process's first fall due a little later, when the EHR may be suspect already.
    many.pass(secs(200)).await;
    let refused = many.calls();
    assert!(refused <= GRANTS, "{refused}");
    many.pass(secs(105)).await;
    let waits = async || {
        for (n, grant) in grants.iter().enumerate() {
            match many.ask(n % 3, *grant).await.unwrap_err() {
                CustodyFault::Unavailable { .. } | CustodyFault::Suspect { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    // They fell due before.
    waits().await;
    let suspects = || many.nodes.iter().map(|node| node.counted().suspect).collect::<Vec<_>>();
    assert_eq!(suspects(), vec![[("general".to_owned(), true)]; 3]);
    // Long enough for every window to close.
    for _ in 0..12 {
        many.pass(secs(60)).await;
        waits().await;
    }
    assert_eq!(many.ended(), 0);
    // After the first ones each process has tried after 1, 2 and 4 minutes.
    let tried = many.calls() - refused;
    assert_eq!(tried, 9);
    let renewed = |n: usize| RefreshAnswer::Tokens {
        access: format!("access of {n}").into(),
        refresh: Some(format!("refresh of {n}").into()),
        lifetime: Some(secs(300)),
        refresh_lifetime: None,
        scope: None,
        id_token: None,
    };
    many.world.ehr.only((0..GRANTS).map(|n| Reply::Answer(renewed(n))));
    // The next try of one process frees its own, and the others try at once.
    while many.outcomes(RefreshOutcome::Renewed) == 0 {
        many.pass(secs(1)).await;
    }
    many.pass(secs(5)).await;
    assert_eq!(many.outcomes(RefreshOutcome::Renewed), GRANTS);
    assert_eq!(suspects(), vec![[("general".to_owned(), true), ("general".to_owned(), false)]; 3]);
    assert_eq!((many.calls(), many.ended()), (refused + tried + GRANTS, 0));
}
