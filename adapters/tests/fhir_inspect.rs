//! The inspector: entry by entry, any chunking, nothing unjudged leaves.
#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::BufMut;
use mantel_adapters::fhir::{
    compartment::{Belonging, belongs},
    inspect::{Ending, Fault, Inspector, LARGEST, Part, Verdict},
    rewrite::Bases,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn inspect(body: &[u8], size: usize, judge: impl FnMut(&Part<'_>) -> Verdict) -> (Vec<u8>, Result<Ending, Fault>) {
    let mut inspector = Inspector::new(judge);
    let mut out = Vec::new();
    for chunk in body.chunks(size.max(1)) {
        if let Err(fault) = inspector.push(chunk, &mut out) {
            return (out, Err(fault));
        }
    }
    let ending = inspector.finish(&mut out);
    (out, ending)
}

fn of_patient(id: &'static str) -> impl FnMut(&Part<'_>) -> Verdict {
    let bases = Bases::new(["https://ehr.example/r4"], "https://mantel.example/fhir/r4").unwrap();
    move |part| match part.resource.map(|resource| belongs(resource, id, &bases)) {
        Some(Belonging::Yes | Belonging::Shared) => Verdict::Keep,
        _ => Verdict::Drop,
    }
}

fn searchset() -> Value {
    json!({
        "resourceType": "Bundle", "id": "b", "type": "searchset", "total": 4,
        "link": [{"relation": "self", "url": "https://ehr.example/r4/Observation?patient=1"}],
        "contained": [{"resourceType": "Patient", "id": "2"}],
        "entry": [
            {"fullUrl": "https://ehr.example/r4/Observation/a", "resource": {"resourceType": "Observation", "id": "a", "subject": {"reference": "Patient/1"}}, "search": {"mode": "match"}},
            {"fullUrl": "https://ehr.example/r4/Observation/b", "resource": {"resourceType": "Observation", "id": "b", "subject": {"reference": "Patient/2"}}, "search": {"mode": "match"}},
            {"resource": {"resourceType": "Practitioner", "id": "c", "name": [{"text": "a \"}],[{ b\\"}]}, "search": {"mode": "include"}, "extension": [{"url": "x", "valueReference": {"reference": "Patient/2"}}]},
            {"resource": {"resourceType": "Observation", "id": "d", "subject": {"reference": "Patient/1"}, "contained": [{"resourceType": "Patient", "id": "p"}]}},
            {"resource": {"resourceType": "OperationOutcome", "issue": []}, "search": {"mode": "outcome"}},
        ],
        "signature": {"data": "x"},
    })
}

#[test]
fn a_miss_drops_the_entry_and_total() {
    let body = searchset();
    for text in [serde_json::to_string(&body).unwrap(), serde_json::to_string_pretty(&body).unwrap()] {
        for size in [1, 2, 3, 7, 64, 10_000] {
            let (out, ending) = inspect(text.as_bytes(), size, of_patient("1"));
            assert_eq!(ending, Ok(Ending::Bundle { dropped: 2 }), "by {size}");
            let out: Value = serde_json::from_slice(&out).unwrap();
            let mut expected = body.clone();
            let members = expected.as_object_mut().unwrap();
            for gone in ["total", "contained", "signature"] {
                members.remove(gone);
            }
            let entries = members["entry"].as_array_mut().unwrap();
            entries.remove(3);
            entries.remove(1);
            entries[1].as_object_mut().unwrap().remove("extension");
            assert_eq!(out, expected, "by {size}");
        }
    }
}

#[test]
fn all_of_it_may_be_dropped_or_kept() {
    let text = searchset().to_string();
    let (out, _) = inspect(text.as_bytes(), 5, of_patient("nobody"));
    let out: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(out["entry"].as_array().unwrap().len(), 2, "the shared ones");
    let (out, ending) = inspect(text.as_bytes(), 5, |_| Verdict::Drop);
    let out: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((out.get("entry"), ending), (None, Ok(Ending::Bundle { dropped: 5 })), "R4 has no empty lists");
    let (out, _) = inspect(text.as_bytes(), 5, |_| Verdict::Keep);
    assert_eq!(serde_json::from_slice::<Value>(&out).unwrap()["entry"].as_array().unwrap().len(), 5);
}

#[test]
fn decimals_of_what_passes_keep_their_digits() {
    let body = br#"{"resourceType":"Bundle","type":"searchset","entry":[{"resource":{"resourceType":"Observation","valueQuantity":{"value":1.00}}}]}"#;
    let (out, _) = inspect(body, 3, |_| Verdict::Keep);
    assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8_lossy(body));
}

#[test]
fn entries_before_the_resource_type_are_judged_too() {
    let body = br#"{"\u0065ntry":[{"resource":{"resourceType":"Patient","id":"2"}}],"type":"searchset","resourceType":"Bundle"}"#;
    let (out, ending) = inspect(body, 4, of_patient("1"));
    assert_eq!(ending, Ok(Ending::Bundle { dropped: 1 }));
    assert_eq!(out, br#"{"resourceType":"Bundle","type":"searchset"}"#);
}

#[test]
fn entries_of_a_batch_response_keep_their_index() {
    let body = br#"{"resourceType":"Bundle","type":"batch-response","entry":[{"response":{"status":"200"},"resource":{"resourceType":"Patient","id":"2"}},{"response":{"status":"201","location":"Patient/1","outcome":{"resourceType":"OperationOutcome"}}}]}"#;
    let (out, _) = inspect(body, 11, |part| {
        if part.index == 0 {
            return Verdict::Replace(br#"{"response":{"status":"404"}}"#.to_vec());
        }
        assert_eq!(part.response_location.as_deref(), Some("Patient/1"));
        assert_eq!(part.outcome, Some(&br#"{"resourceType":"OperationOutcome"}"#[..]));
        Verdict::Keep
    });
    let out: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(out["entry"][0], json!({"response": {"status": "404"}}));
    assert_eq!(out["entry"][1]["response"]["status"], "201");
}

#[test]
fn a_resource_by_itself_passes_whole_or_not_at_all() {
    let body = include_bytes!("fixtures/fhir/official/Observation-example.json");
    for size in [1, 100, 100_000] {
        let (out, ending) = inspect(body, size, of_patient("example"));
        assert_eq!((out.as_slice(), ending), (&body[..], Ok(Ending::Passed)));
        assert_eq!(inspect(body, size, of_patient("other")), (vec![], Ok(Ending::Withheld)));
    }
    // `entry` of a List holds no resources.
    let list = include_bytes!("fixtures/fhir/official/List-prognosis.json");
    assert_eq!(inspect(list, 999, |part| if part.in_bundle { Verdict::Drop } else { Verdict::Keep }).0, list);
}

#[test]
fn what_is_broken_is_a_fault_and_shows_nothing_unjudged() {
    let keep = |_: &Part<'_>| Verdict::Keep;
    let cases: [(&[u8], Fault); 16] = [
        (b"", Fault::Truncated),
        (b"  ", Fault::Truncated),
        (b"<html>", Fault::Malformed),
        (b"[]", Fault::Malformed),
        (b"\xEF{}", Fault::Malformed),
        (b"{}", Fault::Malformed),
        (br#"{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Patient"#, Fault::Truncated),
        (br#"{"resourceType":"Patient","id":"1"#, Fault::Truncated),
        (br#"{"resourceType":"Patient"}{"resourceType":"Patient"}"#, Fault::Malformed),
        (br#"{"resourceType":"Bundle"}{"resourceType":"Patient"}"#, Fault::Malformed),
        (br#"{"resourceType":"Bundle","resourceType":"Patient"}"#, Fault::Malformed),
        (br#"{"resourceType":"Bundle","entry":[{}],"entry":[{}]}"#, Fault::Malformed),
        (br#"{"resourceType":"Bundle","entry":[{"resource":{},"resource":{}}]}"#, Fault::Malformed),
        (br#"{"resourceType":"Bundle","entry":[{},]}"#, Fault::Malformed),
        (br#"{"resourceType":"Bundle","entry":[{"search":["outcome"]}]}"#, Fault::Malformed),
        (br#"{"resourceType":"Bundle","id":x}"#, Fault::Malformed),
    ];
    for (body, fault) in cases {
        for size in [1, 1000] {
            assert_eq!(inspect(body, size, keep).1, Err(fault), "{}", String::from_utf8_lossy(body));
        }
    }
    for name in [
        "broken-utf8.in.json",
        "broken-escape.in.json",
        "broken-truncated.in.json",
        "broken-html.in.json",
        "broken-empty.in.json",
    ] {
        let path = format!("{}/tests/fixtures/fhir/edge/{name}", env!("CARGO_MANIFEST_DIR"));
        assert!(inspect(&std::fs::read(path).unwrap(), 7, keep).1.is_err(), "{name}");
    }
    let with_mark = [b"\xEF\xBB\xBF", &br#"{"resourceType":"Patient"}"#[..]].concat();
    assert_eq!(inspect(&with_mark, 2, keep).1, Ok(Ending::Passed));
}

/// Counts, so that no test needs the memory that it speaks of.
struct Counter(usize);

#[test]
fn memory_is_bounded_by_the_largest_entry() {
    let large = format!(r#"{{"resourceType":"Patient","x":"{}"}}"#, "y".repeat(LARGEST));
    assert_eq!(inspect(large.as_bytes(), 1 << 16, |_| Verdict::Keep).1, Err(Fault::TooLarge));
    let entry = format!(r#"{{"resourceType":"Bundle","entry":[{{"resource":{large}}}]}}"#);
    assert_eq!(inspect(entry.as_bytes(), 1 << 16, |_| Verdict::Keep).1, Err(Fault::TooLarge));
    // Many entries that together are larger.
    let one = format!(r#"{{"resource":{{"resourceType":"Patient","x":"{}"}}}}"#, "y".repeat(LARGEST / 3));
    let mut seen = Counter(0);
    let mut inspector = Inspector::new(|part: &Part<'_>| {
        seen.0 += part.resource.unwrap().len();
        Verdict::Drop
    });
    let mut out = Vec::new();
    inspector.push(br#"{"resourceType":"Bundle","entry":["#, &mut out).unwrap();
    for at in 0..5 {
        if at > 0 {
            inspector.push(b",", &mut out).unwrap();
        }
        inspector.push(one.as_bytes(), &mut out).unwrap();
    }
    inspector.push(b"]}", &mut out).unwrap();
    assert_eq!(inspector.finish(&mut out), Ok(Ending::Bundle { dropped: 5 }));
    assert!(seen.0 > LARGEST && out.len() < 100);
}

#[test]
fn depth_is_no_matter() {
    let deep = format!(
        r#"{{"resourceType":"Bundle","entry":[{{"resource":{{"x":{}{}}}}}]}}"#,
        "[".repeat(20_000),
        "]".repeat(20_000)
    );
    let (out, ending) = inspect(deep.as_bytes(), 4096, |_| Verdict::Keep);
    assert_eq!((out.len(), ending), (deep.len(), Ok(Ending::Bundle { dropped: 0 })));
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same(
        kept in prop::collection::vec(any::<bool>(), 0..6),
        words in prop::collection::vec("[\\[\\]{}\",:\\\\a é]{0,12}", 6),
        pretty in any::<bool>(),
        cuts in prop::collection::vec(1usize..40, 1..20),
    ) {
        let entries: Vec<Value> = kept.iter().zip(&words).map(|(kept, word)| json!({"resource": {"resourceType": "Basic", word: word, "kept": kept}})).collect();
        let bundle = json!({"id": words[0], "resourceType": "Bundle", "entry": entries, "type": "searchset"});
        let text = if pretty { serde_json::to_string_pretty(&bundle) } else { serde_json::to_string(&bundle) }.unwrap();
        let mut inspector = Inspector::new(|part: &Part<'_>| {
            let resource: Value = serde_json::from_slice(part.resource.unwrap()).unwrap();
            if resource["kept"] == true { Verdict::Keep } else { Verdict::Drop }
        });
        let (mut out, mut rest, mut at) = (Vec::new(), text.as_bytes(), 0);
        while !rest.is_empty() {
            let (chunk, tail) = rest.split_at(cuts[at % cuts.len()].min(rest.len()));
            inspector.push(chunk, &mut out).unwrap();
            (rest, at) = (tail, at + 1);
        }
        inspector.finish(&mut out).unwrap();
        let out: Value = serde_json::from_slice(&out).unwrap();
        let expected: Vec<&Value> = entries.iter().filter(|entry| entry["resource"]["kept"] == true).collect();
        let got: Vec<&Value> = out["entry"].as_array().map(|all| all.iter().collect()).unwrap_or_default();
        prop_assert_eq!(got, expected);
        prop_assert_eq!(&out["id"], &bundle["id"]);
    }

    #[test]
    fn nothing_makes_it_panic(pieces in prop::collection::vec(prop::sample::select(vec![
        "{", "}", "[", "]", "\"", ":", ",", "\\", "\"resourceType\":\"Bundle\"", "\"entry\":[", "1", "null", " ",
    ]), 0..40), size in 1usize..20) {
        let mut largest = 0;
        let (out, _) = inspect(pieces.concat().as_bytes(), size, |part| { largest += part.resource.map_or(0, <[u8]>::len); Verdict::Drop });
        let mut text = Vec::new();
        text.put_slice(&out);
        // Whatever was kept of it, no entry left.
        prop_assert!(!String::from_utf8_lossy(&text).contains("\"entry\""));
    }
}
