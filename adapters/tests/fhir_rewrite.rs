//! The rewriter: golden cases, headers, and any chunking against a slow reference.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use mantel_adapters::fhir::rewrite::{Bases, Format, Nonsense, Rewriter, rewrite_all, sniff};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

const UPSTREAM: &str = "https://ehr.example/api/FHIR/R4";
const CALLED: &str = "https://mantel.example/fhir/r4";

fn bases() -> Arc<Bases> {
    Arc::new(Bases::new([UPSTREAM], CALLED).unwrap())
}

fn fixture(name: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/fhir", name].iter().collect();
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn format_of(name: &str) -> Format {
    match name.rsplit('.').next() {
        Some("xml") => Format::Xml,
        Some("ndjson") => Format::Ndjson,
        _ => Format::Json,
    }
}

fn in_chunks(bases: &Arc<Bases>, format: Format, body: &[u8], size: usize) -> Vec<u8> {
    let mut rewriter = Rewriter::new(bases, format);
    let mut out = Vec::new();
    for chunk in body.chunks(size) {
        rewriter.push(chunk, &mut out);
    }
    rewriter.finish(&mut out);
    out
}

fn in_bytes(bases: &Arc<Bases>, format: Format, body: &[u8], size: usize) -> Vec<u8> {
    let mut rewriter = Rewriter::new(bases, format);
    let mut out = Vec::new();
    for chunk in body.chunks(size) {
        out.extend_from_slice(&rewriter.push_bytes(&Bytes::copy_from_slice(chunk)));
    }
    out.extend_from_slice(&rewriter.finish_bytes());
    out
}

#[derive(Deserialize)]
struct Cases {
    upstream_base: String,
    called_base: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(rename = "in")]
    input: String,
    out: String,
}

/// Written with escapes upstream; the fixtures ask for equal JSON values only.
const ESCAPED: [&str; 2] = ["escaped-slashes", "unicode-escapes"];

#[test]
fn golden_cases_hold_whatever_the_chunks() {
    let table: Cases = serde_json::from_slice(&fixture("edge/cases.json")).unwrap();
    let bases = Arc::new(Bases::new([&table.upstream_base], &table.called_base).unwrap());
    assert!(table.cases.len() > 40);
    for case in &table.cases {
        let input = fixture(&format!("edge/{}", case.input));
        let expected = fixture(&format!("edge/{}", case.out));
        let format = format_of(&case.input);
        let whole = rewrite_all(&bases, format, &Bytes::from(input.clone()));
        if ESCAPED.contains(&case.name.as_str()) {
            let (got, wanted): (Value, Value) =
                (serde_json::from_slice(&whole).unwrap(), serde_json::from_slice(&expected).unwrap());
            assert_eq!(got, wanted, "{}", case.name);
        } else if case.name.starts_with("broken-") {
            // Every byte as it came, but a URL that was found may have moved.
            assert_eq!(show(&whole).replace(CALLED, UPSTREAM).split(" (").next(), show(&expected).split(" (").next());
        } else if whole != expected {
            panic!("{}:\n{}\nexpected\n{}", case.name, show(&whole), show(&expected));
        }
        for size in [1, 2, 3, 5, 7, 16, 61, 127, 1024, 8192] {
            if size < 16 && input.len() > 50_000 {
                continue;
            }
            assert_eq!(show(&in_chunks(&bases, format, &input, size)), show(&whole), "{} by {size}", case.name);
            assert_eq!(show(&in_bytes(&bases, format, &input, size)), show(&whole), "{} by {size}", case.name);
        }
    }
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..bytes.len().min(2000)).unwrap()).into_owned()
        + &format!(" ({} bytes)", bytes.len())
}

#[test]
fn an_escape_outside_the_base_is_kept() {
    let input = fixture("edge/escaped-slashes.in.json");
    let out = String::from_utf8(rewrite_all(&bases(), Format::Json, &Bytes::from(input)).to_vec()).unwrap();
    assert!(out.contains(r#""https://mantel.example/fhir/r4\/Patient\/1""#), "{out}");
}

#[test]
fn nonsense_is_told_by_its_first_bytes() {
    let sniffed = |name: &str| sniff(&fixture(&format!("edge/{name}")), format_of(name));
    assert_eq!(sniffed("broken-html.in.json"), Err(Nonsense::MarkupForJson));
    assert_eq!(sniffed("xml-utf16.in.xml"), Err(Nonsense::Utf16));
    assert_eq!(sniffed("xml-doctype-entity.in.xml"), Err(Nonsense::Doctype));
    assert_eq!(sniffed("whitespace.in.json"), Ok(()));
    assert_eq!(sniffed("broken-empty.in.json"), Ok(()));
    assert_eq!(sniffed("xml-searchset.in.xml"), Ok(()));
    assert_eq!(sniff(b"Service not registered", Format::Json), Err(Nonsense::NotJson));
    assert_eq!(sniff(b"<!DOCTYPE html><p>", Format::Xml), Err(Nonsense::Html));
}

#[test]
fn a_dtd_is_told_wherever_it_comes() {
    let mut rewriter = Rewriter::new(&bases(), Format::Xml);
    let mut out = Vec::new();
    rewriter.push(b"<?xml version='1.0'?><!-- - -- ->", &mut out);
    assert_eq!(rewriter.refused(), None);
    rewriter.push(b"--><!DOC", &mut out);
    assert_eq!(rewriter.refused(), Some(Nonsense::Doctype));
}

#[test]
fn headers() {
    #[derive(Deserialize)]
    struct Table {
        cases: Vec<HeaderCase>,
    }
    #[derive(Deserialize)]
    struct HeaderCase {
        #[serde(rename = "in")]
        input: std::collections::BTreeMap<String, String>,
        out: std::collections::BTreeMap<String, String>,
    }
    let bases = bases();
    let table: Table = serde_json::from_slice(&fixture("edge/headers.json")).unwrap();
    for case in table.cases {
        for (name, value) in &case.input {
            let got = match name.as_str() {
                "Location" | "Content-Location" => bases.rewrite_location(value),
                "Link" => bases.rewrite_link_header(value),
                _ => value.into(),
            };
            // Notes stand in brackets behind the value. One was open: a path-absolute URL below the base.
            let expected = case.out[name].split(" (").next().unwrap();
            let expected =
                if value.starts_with("/api/FHIR/R4/") { "https://mantel.example/fhir/r4/Patient/1" } else { expected };
            assert_eq!(got, expected, "{name}");
        }
    }
    assert_eq!(bases.rewrite_link_header("<https://ehr.example/api/FHIR/R4/x"), "<https://ehr.example/api/FHIR/R4/x");
    assert_eq!(
        bases.rewrite_link_header("title=\"<https://ehr.example/api/FHIR/R4/x>\""),
        "title=\"<https://ehr.example/api/FHIR/R4/x>\""
    );
}

#[test]
fn redirects_must_stay_below_the_base() {
    let bases = bases();
    assert!(bases.holds("https://ehr.example/api/FHIR/R4/Patient/1"));
    assert!(!bases.holds("https://ehr.example/api/FHIR/R4/../../oauth2/authorize"));
    assert!(!bases.holds("https://ehr.example/api/FHIR/R4/%2e%2e/x"));
    assert!(!bases.holds("https://ehr.example/api/FHIR/R4/..%2Fx"));
    assert!(!bases.holds("https://ehr.example.evil.example/api/FHIR/R4/Patient/1"));
}

#[test]
fn several_bases_become_one() {
    let upward =
        Bases::new(["https://m.example/fhir/r4", "https://m.example/sites/a/fhir/r4/"], "https://ehr.example/r4/")
            .unwrap();
    assert_eq!(upward.rewrite("https://m.example/sites/a/fhir/r4/Patient/1"), "https://ehr.example/r4/Patient/1");
    assert_eq!(upward.rewrite("https://m.example/fhir/r4?x"), "https://ehr.example/r4?x");
    assert_eq!(
        upward.rewrite("https://m.example/sites/b/fhir/r4/Patient/1"),
        "https://m.example/sites/b/fhir/r4/Patient/1"
    );
    assert_eq!(
        upward.rewrite_parameter("https://m.example/fhir/r4/Patient/1,Patient/2,https://m.example/fhir/r4/Patient/3"),
        "https://ehr.example/r4/Patient/1,Patient/2,https://ehr.example/r4/Patient/3"
    );
    let linked =
        Bases::new(["https://a.example/r4", "http://b.example/R4", "https://a.example:443/r4/deep"], CALLED).unwrap();
    let body = br#"["http://b.example:80/R4/x","https://a.example/r4/deep/x","https://b.example/R4/x"]"#;
    let out = rewrite_all(&Arc::new(linked), Format::Json, &Bytes::from_static(body));
    assert_eq!(
        out,
        &br#"["https://mantel.example/fhir/r4/x","https://mantel.example/fhir/r4/x","https://b.example/R4/x"]"#[..]
    );
}

#[test]
fn bases_are_checked() {
    for bad in [
        "ehr.example/r4",
        "ftp://ehr.example",
        "https://",
        "https://u@ehr.example/r4",
        "https://e/r4?x",
        "https://e/\"",
        "https://e/ö",
    ] {
        assert!(Bases::new([bad], CALLED).is_err(), "{bad} was taken");
        assert!(Bases::new([UPSTREAM], bad).is_err(), "{bad} was taken");
    }
}

#[test]
fn arrays_of_names_are_left_alone_whatever_lies_between() {
    let filler = "x".repeat(3000);
    let body = format!(
        r#"{{"meta":{{"p\u0072ofile" :
          [ "http://a.example/{filler}", "{UPSTREAM}/a", ["{UPSTREAM}/b"], {{"reference":"{UPSTREAM}/c","{UPSTREAM}/key" : ["{UPSTREAM}/d", "{UPSTREAM}/e"]}}, "]", "{UPSTREAM}/f" ] }},
          "text":"say \"profile\":[ ", "x":":[", "instantiatesCanonical":["{UPSTREAM}/g"], "basedOn":[null, "{UPSTREAM}/h"], "profile":"{UPSTREAM}/i"}}"#
    );
    let kept = ["/a", "/b", "/key", "/f", "/g", "/i"];
    for size in [1, 2, 3, 7, 64, 4096, 100_000] {
        let out = String::from_utf8(in_chunks(&bases(), Format::Json, body.as_bytes(), size)).unwrap();
        for name in kept {
            assert!(out.contains(&format!("\"{UPSTREAM}{name}\"")), "{name} by {size}: {out}");
        }
        assert_eq!(out.matches(UPSTREAM).count(), kept.len(), "by {size}: {out}");
        assert_eq!(out.matches(CALLED).count(), 4, "by {size}");
    }
}

#[test]
fn quotes_within_strings_open_and_name_nothing() {
    let slashes = "\\".repeat(1000);
    let body = format!(
        r#"{{"a":"{slashes}\"{UPSTREAM}/1","b":"{slashes}","c":"{UPSTREAM}/2","d":"instantiatesUri\":[","e":["{UPSTREAM}/3"],
        "{slashes}\"profile":["{UPSTREAM}/4"],"x\"profile":["{UPSTREAM}/5"],"\\":"\"","value":["{UPSTREAM}/6"],"{slashes}":"{UPSTREAM}/7"}}"#
    );
    for size in [1, 2, 3, 100, 1005, 5000] {
        let out = String::from_utf8(in_chunks(&bases(), Format::Json, body.as_bytes(), size)).unwrap();
        let moved: Vec<&str> = out.split(CALLED).skip(1).map(|rest| &rest[1..2]).collect();
        assert_eq!(moved, ["2", "3", "4", "5", "7"], "by {size}: {out}");
    }
}

#[test]
fn a_broken_line_does_not_reach_the_next() {
    let body = format!(
        "{{\"profile\":[\"{UPSTREAM}/1\n{{\"a\":[\"x\",\"{UPSTREAM}/2\"]}}\n{{\"profile\":[\n{{\"a\":[\"x\",\"{UPSTREAM}/3\"]}}"
    );
    for size in [1, 7, 1000] {
        let out = String::from_utf8(in_chunks(&bases(), Format::Ndjson, body.as_bytes(), size)).unwrap();
        let moved: Vec<&str> = out.split(CALLED).skip(1).map(|rest| &rest[1..2]).collect();
        assert_eq!(moved, ["2", "3"], "by {size}: {out}");
    }
}

#[test]
fn in_xml_only_values_of_fhir_elements_move() {
    let body = format!(
        "<Patient xmlns='http://hl7.org/fhir'><?x value='{UPSTREAM}/0'??><!-- <a value='{UPSTREAM}/0'/> - -- --->\
         <text><div><div><ul><li value='{UPSTREAM}/0'/></ul></div><a value=\"{UPSTREAM}/0\"/><![CDATA[</div>]]]]></div></text>\
         <f:profile value='{UPSTREAM}/0'/><instantiatesUri value='{UPSTREAM}/0'/><extension url='{UPSTREAM}/0'><valueUri\n value\t=\n'{UPSTREAM}/1' /></extension>\
         <a x='>' value='{UPSTREAM}/2'/><b value='{UPSTREAM}/ValueSet/0'/><f:link\tvalue = \"HTTPS://ehr.example:443/api/FHIR/R4\" >{UPSTREAM}/0</f:link><c value='{UPSTREAM}x/0'/>\
         <value value='{UPSTREAM}/0'/><d value='&#104;ttps&#x3A;//ehr.example/api/FHIR/R4/3&amp;x'/><e value='&foo;{UPSTREAM}/0'/></Patient>"
    );
    for size in [1, 2, 5, 33, 10_000] {
        let out = String::from_utf8(in_chunks(&bases(), Format::Xml, body.as_bytes(), size)).unwrap();
        let moved: Vec<String> = out.split(CALLED).skip(1).map(|rest| rest.chars().take(2).collect()).collect();
        assert_eq!(moved, ["/1", "/2", "\" ", "/3"], "by {size}: {out}");
        assert!(out.contains(&format!("'{CALLED}/3&amp;x'")), "{out}");
    }
}

fn linked(format: Format, body: &str, size: usize) -> (String, Vec<String>) {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let asked = Arc::clone(&seen);
    let mut rewriter = Rewriter::new(&bases(), format).with_links(Box::new(move |url| {
        asked.lock().unwrap().push(url.to_owned());
        format!("{}&_mantel=\"m\"", url.replace(UPSTREAM, CALLED))
    }));
    let mut out = Vec::new();
    for chunk in body.as_bytes().chunks(size) {
        rewriter.push(chunk, &mut out);
    }
    rewriter.finish(&mut out);
    let seen = seen.lock().unwrap().clone();
    (String::from_utf8(out).unwrap(), seen)
}

#[test]
fn only_links_of_the_outermost_bundle_reach_the_hook() {
    let inner = format!(r#"{{"resourceType":"Bundle","link":[{{"url":"{UPSTREAM}/inner"}}]}}"#);
    let body = format!(
        r#"{{"resourceType" : "Bundle", "entry":[{{"link":[{{"relation":"next","url":"{UPSTREAM}/entry"}}],"resource":{inner}}}],
        "link":[{{"url":"{UPSTREAM}/ValueSet?a=1","relation":"{UPSTREAM}/r"}},{{"relation":"next","\u0075rl" : "https:\/\/ehr.example\/api\/FHIR\/R4?_getpages=\u0031","x":{{"url":"{UPSTREAM}/x"}}}},
        {{"url":"https://other.example/y"}},["{UPSTREAM}/z"]]}}"#
    );
    for size in [1, 3, 17, 10_000] {
        let (out, seen) = linked(Format::Json, &body, size);
        assert_eq!(seen, [format!("{UPSTREAM}/ValueSet?a=1"), format!("{UPSTREAM}?_getpages=1")], "by {size}");
        let parsed: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(parsed["link"][1]["url"], format!("{CALLED}?_getpages=1&_mantel=\"m\""));
        assert_eq!(parsed["entry"][0]["resource"]["link"][0]["url"], format!("{CALLED}/inner"));
        assert!(!out.contains(UPSTREAM), "{out}");
    }
    for other in [
        format!(r#"{{"resourceType":"Basic","link":[{{"url":"{UPSTREAM}/a"}}]}}"#),
        format!(r#"{{"resourceType":"Bundle","link":{{"a":{{"url":"{UPSTREAM}/a"}}}}}}"#),
        format!(
            r#"{{"resourceType":"Bundle","link":[{{"a":{{"url":"{UPSTREAM}/a"}}}}],"links":[{{"url":"{UPSTREAM}/a"}}]}}"#
        ),
    ] {
        assert!(linked(Format::Json, &other, 5).1.is_empty(), "{other}");
    }
}

#[test]
fn a_link_too_long_to_hold_is_rewritten_like_any_string() {
    let body = format!(r#"{{"resourceType":"Bundle","link":[{{"url":"{UPSTREAM}/a?{}"}}]}}"#, "y".repeat(9000));
    for size in [100, 20_000] {
        let (out, seen) = linked(Format::Json, &body, size);
        assert!(seen.is_empty() && out.contains(&format!("\"{CALLED}/a?yyy")), "by {size}");
    }
}

#[test]
fn links_in_xml_reach_the_hook() {
    let body = format!(
        "<Bundle xmlns='http://hl7.org/fhir'><link><relation value='next'/><url value='{UPSTREAM}/Patient?a=1&amp;b=&#x32;'/></link>\
         <entry><link><url value='{UPSTREAM}/entry'/></link><resource><Bundle><link><url value='{UPSTREAM}/inner'/></link></Bundle></resource></entry></Bundle>"
    );
    for size in [1, 7, 5000] {
        let (out, seen) = linked(Format::Xml, &body, size);
        assert_eq!(seen, [format!("{UPSTREAM}/Patient?a=1&b=2")], "by {size}");
        assert!(out.contains(&format!("'{CALLED}/Patient?a=1&amp;b=2&amp;_mantel=&quot;m&quot;'")), "{out}");
        assert!(out.contains(&format!("'{CALLED}/inner'")));
    }
}

/// Every kind of bundle link that 13 vendors send comes back under the called base.
#[test]
fn paging_links_of_vendors() {
    let table: Value = serde_json::from_slice(&fixture("vendor-headers-and-paging-links.json")).unwrap();
    let mut count = 0;
    for (vendor, searches) in table["links"].as_object().unwrap() {
        for search in searches.as_array().unwrap() {
            for link in search["link"].as_array().unwrap() {
                let url = link["url"].as_str().unwrap();
                // The base: the request's, in the spelling in which the vendor answers.
                let (base, rest) =
                    ["AllergyIntolerance", "Observation", "Procedure", "Patient", "ExplanationOfBenefit"]
                        .iter()
                        .find_map(|name| url.find(&format!("/{name}")).map(|at| url.split_at(at)))
                        .unwrap();
                let bases = Arc::new(Bases::new([base], CALLED).unwrap());
                let body = serde_json::to_vec(&serde_json::json!({"link": [link]})).unwrap();
                let out: Value = serde_json::from_slice(&in_chunks(&bases, Format::Json, &body, 11)).unwrap();
                assert_eq!(out["link"][0]["url"], format!("{CALLED}{rest}"), "{vendor}");
                count += 1;
            }
        }
    }
    assert!(count >= 13);
}

// A slow reference: what the rules say of a parsed value.

fn reference(value: &Value, member: Option<&str>) -> Value {
    let left_alone =
        |name: &str| matches!(name, "system" | "profile" | "value" | "div") || name.starts_with("instantiates");
    match value {
        Value::String(text) if !member.is_some_and(left_alone) => Value::String(moved(text)),
        Value::Array(items) => items.iter().map(|item| reference(item, member)).collect(),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(name, value)| (name.clone(), reference(value, Some(name)))).collect())
        }
        other => other.clone(),
    }
}

fn moved(text: &str) -> String {
    let Some((scheme, _)) = text.split_once(':') else { return text.to_owned() };
    if !scheme.eq_ignore_ascii_case("https") {
        return text.to_owned();
    }
    let rest = &text[scheme.len()..];
    for prefix in ["://ehr.example/api/FHIR/R4", "://ehr.example:443/api/FHIR/R4"] {
        let Some(rest) = rest.strip_prefix(prefix) else { continue };
        if !(rest.is_empty() || rest.starts_with(['/', '?', '#'])) {
            continue;
        }
        let segment = rest.strip_prefix('/').map(|rest| rest.split(['/', '?', '#', '|']).next().unwrap());
        if segment.is_some_and(|name| ["ValueSet", "StructureDefinition", "TerminologyCapabilities"].contains(&name)) {
            return text.to_owned();
        }
        return format!("{CALLED}{rest}");
    }
    text.to_owned()
}

/// Strings that are bases, nearly bases, and what stands around strings in JSON.
fn text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "https://ehr.example/api/FHIR/R4",
        "HTTPS",
        "https",
        "://",
        "ehr.example",
        ":443",
        "/api/FHIR/R4",
        "/",
        "?",
        "#",
        "|",
        "ValueSet",
        "StructureDefinition",
        "TerminologyCapabilities",
        "Patient",
        "\"",
        "\\",
        "profile",
        "\":[",
        "[",
        ",",
        ":",
        " ",
        "\n",
        "é",
        "😀",
        "B",
        "\u{1}",
        "\"instantiatesUri\":[",
        "\"profile\" : [",
        "instantiatesUri\":[",
    ]);
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn url() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["https://ehr.example/api/FHIR/R4", "hTTps://ehr.example:443/api/FHIR/R4"]), text())
        .prop_map(|(base, rest)| format!("{base}/{rest}"))
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "system",
            "profile",
            "value",
            "div",
            "instantiatesUri",
            "url",
            "reference",
            "valueUri",
            ""
        ])
        .prop_map(str::to_owned),
        text(),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        3 => url().prop_map(Value::String),
        3 => text().prop_map(Value::String),
        1 => Just(Value::Null),
        1 => any::<i32>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((name(), inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Writes a value with white space and escapes drawn from `dice`.
fn write(value: &Value, dice: &mut impl FnMut() -> u8, out: &mut String) {
    let blank = |dice: &mut dyn FnMut() -> u8, out: &mut String| match dice() % 8 {
        0 => out.push(' '),
        1 => out.push_str("\r\n\t"),
        2 => out.push_str(&"\n    ".repeat(usize::from(dice()))),
        _ => {}
    };
    match value {
        Value::String(text) => string(text, dice, out),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                blank(dice, out);
                write(item, dice, out);
                blank(dice, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (at, (name, item)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                blank(dice, out);
                string(name, dice, out);
                blank(dice, out);
                out.push(':');
                blank(dice, out);
                write(item, dice, out);
                blank(dice, out);
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn string(text: &str, dice: &mut impl FnMut() -> u8, out: &mut String) {
    let escapes = dice() % 3;
    out.push('"');
    for letter in text.chars() {
        let escape = escapes == 0 && dice().is_multiple_of(4);
        match letter {
            '/' if escape && dice().is_multiple_of(2) => out.push_str("\\/"),
            _ if escape || letter < ' ' => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    if dice().is_multiple_of(2) {
                        out.push_str(&format!("\\u{unit:04x}"))
                    } else {
                        out.push_str(&format!("\\u{unit:04X}"))
                    }
                }
            }
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            other => out.push(other),
        }
    }
    out.push('"');
}

fn cut<'a>(body: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
    places.extend([0, body.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_gives_what_the_rules_say(
        document in document(),
        dice in prop::collection::vec(any::<u8>(), 64),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        let mut at = 0;
        let mut next = || { at += 1; dice[at % dice.len()].wrapping_add(u8::try_from(at / dice.len() % 7).unwrap()) };
        let mut body = String::new();
        write(&document, &mut next, &mut body);
        let bases = bases();
        let whole = rewrite_all(&bases, Format::Json, &Bytes::from(body.clone()));
        let parsed: Value = serde_json::from_slice(&whole).unwrap();
        prop_assert_eq!(&parsed, &reference(&document, None), "{}", body);

        let mut rewriter = Rewriter::new(&bases, Format::Json);
        let mut out = Vec::new();
        for chunk in cut(body.as_bytes(), &cuts) {
            rewriter.push(chunk, &mut out);
        }
        rewriter.finish(&mut out);
        prop_assert_eq!(show(&out), show(&whole));
    }

    #[test]
    fn what_holds_no_base_passes_byte_for_byte(body in prop::collection::vec(any::<u8>(), 0..400), cuts in prop::collection::vec(any::<usize>(), 0..20)) {
        for format in [Format::Json, Format::Ndjson, Format::Xml] {
            let mut rewriter = Rewriter::new(&bases(), format);
            let mut out = Vec::new();
            for chunk in cut(&body, &cuts) {
                rewriter.push(chunk, &mut out);
            }
            rewriter.finish(&mut out);
            prop_assert_eq!(&out, &body);
        }
    }

    /// No chunk boundary matters for nonsense either.
    #[test]
    fn broken_json_and_xml_are_chunked_alike(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", "\"", "\\", ":", ",", "\"profile\":[", "\"url\":\"", "https://ehr.example/api/FHIR/R4", "/", "\n", "\\u0068", "<", ">", "<div>", "</div>", "<!--", "-->",
            "<reference value=", "<![CDATA[", "]]>", "<system value='", "'", "&#x68;", "&", "<?", "?>", "/>", "Patient", " ",
        ]), 0..60),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        let body = pieces.concat();
        for format in [Format::Json, Format::Ndjson, Format::Xml] {
            let whole = in_chunks(&bases(), format, body.as_bytes(), body.len().max(1));
            let mut rewriter = Rewriter::new(&bases(), format);
            let mut out = Vec::new();
            for chunk in cut(body.as_bytes(), &cuts) {
                rewriter.push(chunk, &mut out);
            }
            rewriter.finish(&mut out);
            prop_assert_eq!(show(&out), show(&whole), "{:?} {}", format, body);
        }
    }
}
