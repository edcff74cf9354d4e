//! How far does a stock kernel get when KVM executes its supervisor code, even
//! on a host whose KVM interprets that, and how much did the assistant do?
//!
//! `kernel_on_kvm all|user KERNEL INITRD SECONDS [MODEL [APPEND]]`: KVM executes
//! all code it can, or user code only.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use board::{Board, BoardIo, BootSpec, MachineSpec, SerialSpec};
use kvm::{Assistance, Options};
use lifecycle::{Policy, Vm};

/// Shows serial output with the time each line ended.
fn show_lines(start: Instant) -> impl FnMut(&[u8]) + Send {
    let mut line = Vec::new();
    move |bytes: &[u8]| {
        for &b in bytes {
            line.push(b);
            if b == b'\n' {
                let text = String::from_utf8_lossy(&line);
                let _ = write!(std::io::stdout(), "{:8.3} {text}", start.elapsed().as_secs_f64());
                line.clear();
            }
        }
    }
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, kernel, initrd, seconds, rest @ ..] = &args[..] else {
        anyhow::bail!("usage: kernel_on_kvm all|user KERNEL INITRD SECONDS [MODEL [APPEND]]");
    };
    let patience = Duration::from_secs(seconds.parse().context("SECONDS is a number")?);
    let tsc = kvm::host_tsc().context("no usable /dev/kvm")?;
    let append = rest.get(1).map_or("", String::as_str);
    let spec = MachineSpec {
        cpu: rest.first().cloned().unwrap_or_else(|| "x86-64-v2".into()),
        tsc_khz: Some(tsc.khz),
        boot: BootSpec {
            kernel: Some(kernel.into()),
            initrd: Some(initrd.into()),
            cmdline: format!("console=ttyS0 earlyprintk=ttyS0 {append}"),
            ..BootSpec::default()
        },
        serial: vec![SerialSpec::Stdio],
        ..MachineSpec::default()
    };
    let start = Instant::now();
    let io =
        BoardIo { serial: vec![Box::new(show_lines(start))], clock: Some(tsc.clock()), ..BoardIo::new() };
    let board = Board::build(spec, io)?;
    let options = Options {
        assistance: if what == "all" { Assistance::OnFailure } else { Assistance::Supervisor },
        accept_other_cpuid: true,
        ..Options::for_host(&kvm::probe(), lifecycle::interpreter())
    };
    let engine = lifecycle::kvm(&board, options)?;
    let mut vm = Vm::new(Arc::clone(&board), engine, Policy { reboot: false })?;
    vm.start()?;
    let outcome = vm.wait(Some(Instant::now() + patience))?;
    println!("{outcome:?} after {:.1} s", start.elapsed().as_secs_f64());
    for state in vm.last_states() {
        println!("at {:#x}", state.rip);
    }
    for (name, count) in vm.counters() {
        println!("{count:>14} {name}");
    }
    Ok(())
}
