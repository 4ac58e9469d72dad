//! What each engine must do: one suite of functions over `&dyn Store`.

pub mod custody;
pub mod launches;
pub mod rest;
pub mod rotation;
pub mod samples;
pub mod tokens;

/// One test per function of the suite, each on a store of its own made by `$open`.
#[macro_export]
macro_rules! contract {
    ($open:path) => {
        $crate::contract!(@ $open;
            launches: an_ehr_launch_is_taken_once, an_ehr_launch_ends_with_its_time, a_launch_comes_back_whole,
                a_step_is_taken_once, an_ehr_returns_once, a_launch_ends_with_its_time;
            tokens: a_grant_comes_back_whole, a_grant_made_twice_is_made_once, a_new_authorization_takes_the_place,
                a_code_is_found_until_it_expires, one_redeems_and_the_rest_end_the_grant, redeeming_may_be_repeated,
                an_expired_code_is_unknown, a_code_of_an_ended_grant_says_why, an_access_token_opens_its_grant,
                rotation_gives_new_tokens, a_lost_answer_is_given_again, the_grace_ends_with_its_time,
                the_grace_ends_with_the_successors_use, the_grace_ends_with_its_access_tokens_use,
                the_grace_is_for_one_generation, one_rotates_among_many, a_thief_ends_the_grant,
                rotating_may_be_repeated, a_refresh_without_rotation_adds_a_token, an_owner_is_found_by_any_token,
                what_a_later_version_knows_survives;
            custody: one_begins_among_many, one_begins_among_processes, a_begin_names_what_moved,
                a_dead_process_leaves_doubt, an_answer_is_stored_by_what_it_consumed, finishing_may_be_repeated,
                an_ehrs_answer_goes_before_all_else,
                a_late_answer_is_taken_whoever_holds_the_lease, an_abandoned_refresh_leaves_the_grant_live,
                the_one_try_is_noted_once, an_unanswered_try_may_be_made_again, a_lease_beats_for_its_owner,
                a_lease_is_taken_over_as_seen, revocation_in_flight_wins, an_end_guards_the_generation,
                ends_are_numbered, ended_tokens_are_forgotten, a_use_is_noted_forwards, grants_come_in_pages, grants_are_counted;
            rest: a_subject_keeps_its_sub, a_jti_is_remembered_once, signing_keys_come_newest_first,
                one_adds_a_signing_key, revocations_are_done_or_tried_again, a_revocation_is_taken_by_one, what_expired_is_forgotten,
                the_latest_time_is_remembered, it_answers,
                replicas_see_each_other, registrations_are_seen_to_change, grants_of_a_registration_are_counted,
                a_thousand_writes_at_once;
        );
    };
    (@ $open:path; $($room:ident: $($name:ident),*;)*) => {$(
        mod $room {
            $(#[tokio::test]
            async fn $name() {
                let (store, _keep) = $open().await;
                $crate::store_contract::$room::$name(&store).await;
            })*
        }
    )*};
}

/// The same for what needs several seal keys: `$places` makes a [`rotation::Database`] of its own.
#[macro_export]
macro_rules! rotation_contract {
    ($places:path) => {
        $crate::rotation_contract!(@ $places; all_is_sealed_anew, no_refresh_is_overwritten,
            what_is_begun_is_sealed_and_named_by_one_key, a_key_that_is_needed_is_not_retired,
            who_lacks_a_key_is_refused,
            who_was_away_writes_nothing_by_a_retired_key, a_sealed_answer_takes_its_name_along);
    };
    (@ $places:path; $($name:ident),*) => {
        mod rotation {
            $(#[tokio::test]
            async fn $name() {
                $crate::store_contract::rotation::$name(&$places().await).await;
            })*
        }
    };
}
