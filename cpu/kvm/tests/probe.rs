//! The probe on whatever host runs the tests.

#[test]
fn probe_reaches_a_verdict_that_agrees_with_itself() {
    let found = kvm::probe();
    eprintln!("{found}");
    assert!(!found.reason.is_empty());
    assert!(found.present || !found.usable);
    assert_eq!(found.usable, found.ring0_native, "usable means that supervisor code runs at speed");
    if found.present {
        assert!(found.exit_cost_ns > 0);
    }
}
