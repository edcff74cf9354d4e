//! Stubs are reached by short jumps wherever the guest's code lies: constants made
//! of addresses have four bytes or eight.

use super::cost::sample;
use super::*;

/// Bounds the time, not what is met: a program repeats itself.
const INSTRUCTIONS: usize = 60_000;

/// Translate one instruction as a block of its own, and say how.
fn outcome(
    bytes: &[u8],
    va: u64,
    scratch: &mut Scratch,
    thunks: &Thunks,
    strings: &crate::string_thunks::StringThunks,
) -> &'static str {
    let mode = Mode {
        x87: true,
        sse: true,
        avx: true,
        user: true,
        longest: MAX_INSTRUCTIONS as u8,
        ..Mode::default()
    };
    let features = HostFeatures::detect();
    let request = Request {
        bytes,
        va,
        at: 0x1000,
        mode,
        thunks,
        strings,
        system: &Default::default(),
        features: &features,
        foresight: &Foresight::default(),
        careful: false,
        straddling: None,
        vigilant: None,
        known: &|_, _| None,
    };
    match attempt(&request, scratch, true) {
        Err(OutOfReach) => "out of reach",
        Ok(None) => "left to the interpreter",
        Ok(Some(t)) => {
            scratch.recycle(t);
            "translated"
        }
    }
}

/// What is translated at a low address is translated at a high one.
#[test]
fn no_instruction_is_out_of_reach() {
    let thunks = Thunks { enter: 0, exits: [0; 8], beside: 0, mismatch: 0, bottom: 0, indirect: 0, fault: 0 };
    let strings = crate::string_thunks::assemble(0, 0, &[0; 8]).expect("thunks").1;
    let mut scratch = Scratch::new(HostFeatures::detect());
    let mut check = |code: &[u8]| {
        let low = outcome(code, 0x40_02f1, &mut scratch, &thunks, &strings);
        let high = outcome(code, 0x7f68_af4f_02f1, &mut scratch, &thunks, &strings);
        assert_eq!(low, high, "{code:02x?}");
        low
    };
    for code in [
        &[0x41, 0xff, 0x54, 0x24, 0x38][..],                     // call [r12+0x38]
        &[0xff, 0x15, 0x38, 0, 0, 0],                            // call [rip+0x38]
        &[0xff, 0x94, 0xc8, 0, 1, 0, 0],                         // call [rax+rcx*8+0x100]
        &[0x64, 0xff, 0x94, 0xc8, 0, 1, 0, 0],                   // call fs:[rax+rcx*8+0x100]
        &[0x65, 0xff, 0x25, 0, 1, 0, 0],                         // jmp gs:[rip+0x100]
        &[0xff, 0xb4, 0xc8, 0, 1, 0, 0],                         // push [rax+rcx*8+0x100]
        &[0xe8, 0, 1, 0, 0],                                     // call
        &[0xc8, 0x10, 0, 0],                                     // enter
        &[0xa4],                                                 // movsb
        &[0xf0, 0x48, 0x0f, 0xc7, 0x8c, 0xc8, 0, 1, 0, 0],       // lock cmpxchg16b
        &[0x66, 0x0f, 0x3a, 0x63, 0x84, 0xc8, 0, 1, 0, 0, 0x7f], // pcmpistri
    ] {
        let mut alone = code.to_vec();
        // What follows is the interpreter's: the block ends.
        alone.extend([0xf4; 16]);
        check(&alone);
    }
    assert_eq!(check(&[0xff, 0x50, 0x38, 0xf4]), "translated");

    let code = sample();
    let decoder = Decoder::new(64, &code, DecoderOptions::NONE);
    let met = decoder.into_iter().filter(|i| !i.is_invalid()).take(INSTRUCTIONS);
    let mut translated = 0;
    for i in met {
        let at = i.ip() as usize;
        let mut alone = code[at..at + i.len()].to_vec();
        alone.extend([0xf4; 16]);
        translated += usize::from(check(&alone) == "translated");
    }
    assert!(translated > INSTRUCTIONS / 2, "{translated} of a program's instructions");
}
