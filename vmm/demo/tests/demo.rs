//! The demo itself, on every engine of this host.

use demo::Format;

#[test]
fn the_demo_runs_on_every_engine_and_prints_both_formats() {
    let engines = demo::available_engines();
    let mut table = Vec::new();
    let ok = demo::run(&engines, Format::Table, &mut table).unwrap();
    let table = String::from_utf8(table).unwrap();
    eprintln!("{table}");
    assert!(ok, "{table}");
    assert_eq!(table.matches(demo::guest::HELLO.trim_end()).count(), engines.len());

    let mut json = Vec::new();
    demo::run(&engines[..1], Format::Json, &mut json).unwrap();
    let parsed: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(parsed[0]["engine"], "interp");
    assert_eq!(parsed[0]["ticks"], demo::guest::TICKS);
    assert!(parsed[0]["ring0_mips"].as_f64().unwrap() > 0.1);
}
