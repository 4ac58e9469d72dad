use futures_util::future::join_all;
use mantel::store::{LaunchStep, Store};

use super::samples::*;

pub async fn an_ehr_launch_is_taken_once(store: &dyn Store) {
    let ours = token();
    store.keep_ehr_launch(ours, &ehr_launch()).await.unwrap();
    // Kept again: the same call, repeated.
    store.keep_ehr_launch(ours, &ehr_launch()).await.unwrap();
    let taken = join_all((0..20).map(|_| store.take_ehr_launch(ours, NOW))).await;
    let taken: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].launch, ehr_launch().launch);
    assert_eq!(taken[0].app, ehr_launch().app);
}

pub async fn an_ehr_launch_ends_with_its_time(store: &dyn Store) {
    let ours = token();
    store.keep_ehr_launch(ours, &ehr_launch()).await.unwrap();
    assert!(store.take_ehr_launch(ours, at(300)).await.unwrap().is_none());
    assert!(store.take_ehr_launch(token(), NOW).await.unwrap().is_none());
}

pub async fn a_launch_comes_back_whole(store: &dyn Store) {
    let opened = launch();
    store.open_launch(&opened).await.unwrap();
    store.open_launch(&opened).await.unwrap();
    let sent = at_ehr(opened, token());
    assert!(store.advance_launch(LaunchStep::Opened, &sent).await.unwrap());
    let found = store.launch(sent.id, NOW).await.unwrap().unwrap();
    assert_eq!(format!("{found:?}"), format!("{sent:?}"));
    assert_eq!(found.ehr.unwrap().code_verifier, sent.ehr.unwrap().code_verifier);
    assert_eq!(found.ehr_launch, sent.ehr_launch);
}

pub async fn a_step_is_taken_once(store: &dyn Store) {
    let opened = launch();
    store.open_launch(&opened).await.unwrap();
    let ways: Vec<_> = (0..20).map(|_| at_ehr(opened.clone(), token())).collect();
    let took = join_all(ways.iter().map(|way| store.advance_launch(LaunchStep::Opened, way))).await;
    let won: Vec<_> = took.iter().zip(&ways).filter(|(took, _)| *took.as_ref().unwrap()).map(|(_, way)| way).collect();
    assert_eq!(won.len(), 1);
    let stored = store.launch(opened.id, NOW).await.unwrap().unwrap();
    assert_eq!(stored.ehr.unwrap().state, won[0].ehr.as_ref().unwrap().state);
}

pub async fn an_ehr_returns_once(store: &dyn Store) {
    let state = token();
    let opened = launch();
    store.open_launch(&opened).await.unwrap();
    assert!(store.return_launch(state, NOW).await.unwrap().is_none(), "it was not sent yet");
    store.advance_launch(LaunchStep::Opened, &at_ehr(opened.clone(), state)).await.unwrap();
    let back = join_all((0..20).map(|_| store.return_launch(state, NOW))).await;
    let back: Vec<_> = back.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(back.len(), 1);
    assert_eq!((back[0].id, back[0].step), (opened.id, LaunchStep::Returned));
}

pub async fn a_launch_ends_with_its_time(store: &dyn Store) {
    let state = token();
    let opened = launch();
    store.open_launch(&opened).await.unwrap();
    store.advance_launch(LaunchStep::Opened, &at_ehr(opened.clone(), state)).await.unwrap();
    assert!(store.launch(opened.id, at(600)).await.unwrap().is_none());
    assert!(store.return_launch(state, at(600)).await.unwrap().is_none());
    assert!(store.return_launch(state, at(599)).await.unwrap().is_some());
}
