//! Operands that cross pages, so often that a translator makes their code again: every engine leaves what the
//! interpreter does.

use conformance::several::{self, FREE};
use conformance::software_engines;
use engine::Engine;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Result = std::result::Result<(), IcedError>;

const DATA: u64 = FREE + 0x1_0000;
const RESULT: u64 = FREE + 0x2_0000;
const LEFT: usize = 0x3000;

/// Loads and stores of each size from RSI on, which moves by RDX bytes each round.
fn accesses(a: &mut CodeAssembler) -> Result {
    a.movzx(eax, word_ptr(rsi))?;
    a.add(rbx, rax)?;
    a.mov(word_ptr(rsi + r8 + 1), bx)?;
    a.mov(eax, dword_ptr(rsi + r8 * 2))?;
    a.xor(rbx, rax)?;
    a.add(dword_ptr(rsi + r9), ebx)?;
    a.add(rbx, qword_ptr(rsi + r9 * 2))?;
    a.mov(qword_ptr(rsi + r10), rbx)?;
    a.movdqu(xmm0, xmmword_ptr(rsi + r10 * 2))?;
    a.paddb(xmm0, xmm1)?;
    a.movdqu(xmmword_ptr(rsi + r11), xmm0)?;
    a.vmovdqu(ymm2, ymmword_ptr(rsi + r11 * 2))?;
    a.vpaddb(ymm2, ymm2, ymm0)?;
    a.vmovdqu(ymmword_ptr(rsi + r12), ymm2)
}

/// What lies around the pages' end after many rounds, of which all cross it, few or none.
fn run(engine: &dyn Engine, step: i32, rounds: u32) -> Vec<u8> {
    let program = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(rsi, DATA + 0xff0)?;
        a.mov(ebx, 0x1234_5678)?;
        for (n, register) in [r8, r9, r10, r11, r12].into_iter().enumerate() {
            a.mov(register, 3 + 2 * n as u64)?;
        }
        a.movq(xmm1, rbx)?;
        a.mov(ecx, rounds)?;
        a.set_label(&mut again)?;
        accesses(a)?;
        a.add(rsi, step)?;
        // Back from behind the second page's end to before the first's.
        a.mov(rax, DATA + 0x1ff8)?;
        a.cmp(rsi, rax)?;
        a.mov(rax, DATA + 0xfc0)?;
        a.cmova(rsi, rax)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.mov(qword_ptr(RESULT), rbx)?;
        a.cli()?;
        a.hlt()
    };
    let memory = several::run(engine, &|a| a.iretq(), &[&program]);
    let mut left = vec![0; LEFT + 8];
    let (data, sum) = left.split_at_mut(LEFT);
    memory.load(DATA, data).expect("inside");
    memory.load(RESULT, sum).expect("inside");
    left
}

#[test]
fn operands_cross_pages_on_every_engine() {
    for (step, rounds) in [(0, 400), (1, 3000), (7, 3000), (61, 2000)] {
        let expected = run(&interpreter::Interpreter, step, rounds);
        for engine in software_engines() {
            let got = run(&*engine, step, rounds);
            let first = got.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(first, None, "steps of {step} on {}", engine.name());
        }
    }
}
