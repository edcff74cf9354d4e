//! What translation costs: time for each guest instruction and bytes of code.
//! `cargo test --release -p translator cost -- --ignored --nocapture`

use std::time::Duration;

use super::*;

/// Executable bytes of this program: as good a sample of 64-bit code as any. A
/// file of raw code can be named in `STRATA_CODE`.
pub(super) fn sample() -> Vec<u8> {
    if let Some(path) = std::env::var_os("STRATA_CODE") {
        return std::fs::read(path).expect("the file STRATA_CODE names");
    }
    let exe = std::fs::read("/proc/self/exe").expect("this program");
    let u64_at = |at: usize| u64::from_le_bytes(exe[at..at + 8].try_into().expect("eight bytes")) as usize;
    let u32_at = |at: usize| u32::from_le_bytes(exe[at..at + 4].try_into().expect("four bytes"));
    let (headers, count) = (u64_at(32), usize::from(u16::from_le_bytes([exe[56], exe[57]])));
    let executable = |p: &usize| u32_at(*p) == 1 && u32_at(*p + 4) & 1 != 0;
    let segment =
        (0..count).map(|n| headers + 56 * n).find(executable).expect("a program has an executable segment");
    exe[u64_at(segment + 8)..][..u64_at(segment + 32)].to_vec()
}

/// Time this thread has run: other work on the machine does not count.
fn processor_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

#[test]
#[ignore = "a measurement"]
fn cost_of_translation() {
    let code = sample();
    let features = HostFeatures::detect();
    let thunks = Thunks { enter: 0, exits: [0; 8], beside: 0, mismatch: 0, bottom: 0, indirect: 0, fault: 0 };
    let strings = crate::string_thunks::assemble(0, 0, &[0; 8]).expect("thunks").1;
    let mode = Mode {
        x87: true,
        sse: true,
        avx: true,
        user: false,
        longest: MAX_INSTRUCTIONS as u8,
        ..Mode::default()
    };
    // As a vCPU has them: made once.
    let (system, foresight) = (SystemThunks::default(), Foresight::default());
    let mut scratch = Scratch::new(features);
    let mut best = Duration::MAX;
    let mut totals = (0, 0, 0, 0);
    for _ in 0..5 {
        totals = (0, 0, 0, 0);
        let started = processor_time();
        let mut at = 0;
        while at < code.len() {
            // Padding between functions is not executed.
            if code[at] == 0xcc {
                at += 1;
                continue;
            }
            let end = code.len().min((at | 0xfff) + 1).min(at + 1024);
            let block = translate(
                &Request {
                    bytes: &code[at..end],
                    va: 0xffff_ffff_8100_0000 + at as u64,
                    at: 0x1000,
                    mode,
                    thunks: &thunks,
                    strings: &strings,
                    system: &system,
                    features: &features,
                    foresight: &foresight,
                    careful: false,
                    known: &|_, _| None,
                    straddling: None,
                    vigilant: None,
                },
                &mut scratch,
            );
            let Some(t) = block else {
                at += 1;
                continue;
            };
            totals.0 += 1;
            totals.1 += t.map.len();
            totals.2 += usize::from(t.guest_len);
            totals.3 += t.code().len();
            at += usize::from(t.guest_len);
            scratch.recycle(t);
        }
        best = best.min(processor_time() - started);
    }
    let started = processor_time();
    let decoded =
        Decoder::new(64, &code, DecoderOptions::NONE).into_iter().filter(|i| !i.is_invalid()).count();
    println!("decoding alone: {:.1} ns", (processor_time() - started).as_nanos() as f64 / decoded as f64);
    let (blocks, instructions, guest, host) = totals;
    println!(
        "{blocks} blocks, {instructions} instructions: {:.1} ns each; {guest} bytes of guest code, {host} of host code: {:.2} times",
        best.as_nanos() as f64 / instructions as f64,
        host as f64 / guest as f64,
    );
}
