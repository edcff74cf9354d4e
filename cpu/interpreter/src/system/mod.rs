//! Everything that is not plain arithmetic and data movement: segments, far
//! transfers, exceptions, tasks, control, debug and model-specific registers,
//! I/O, flags. Follows the SDM's pseudo code, volume 2, in order and error codes
//! of faults.
//!
//! | module | what |
//! | --- | --- |
//! | `selector` | descriptor-table access, checks of segment loads |
//! | `segment_moves` | MOV, PUSH, POP of segment registers, far-pointer loads |
//! | `table_registers` | LGDT … STR, SMSW, LMSW |
//! | `access_checks` | LAR LSL VERR VERW ARPL |
//! | `stack` | stacks of transfers: nothing committed before the last fault |
//! | `far_transfer`, `far_return`, `interrupt_return` | JMP CALL RET IRET |
//! | `task` | task switches |
//! | `exception`, `software_interrupt` | delivery of every event |
//! | `fast_calls` | SYSCALL … SYSEXIT, SWAPGS, FS and GS bases |
//! | `control`, `debug_registers`, `msr` | CRn, DRn, MSRs |
//! | `flag_instructions` | PUSHF POPF CLI STI CLAC STAC |
//! | `io` | IN OUT INS OUTS |
//! | `processor` | CPUID, time stamps, XCR0, HLT, TLB and cache control |

mod access_checks;
mod control;
mod debug_registers;
pub(crate) mod exception;
mod far_return;
mod far_transfer;
mod fast_calls;
mod flag_instructions;
mod interrupt_return;
mod io;
mod msr;
mod operand;
mod processor;
mod segment_moves;
mod selector;
mod software_interrupt;
mod stack;
mod table_registers;
mod task;

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::insn::{Handler, Insn};

/// The handler of an instruction of this group.
pub(crate) fn handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let handler = segment_handler(i, insn)
        .or_else(|| transfer_handler(i, insn))
        .or_else(|| register_handler(i, insn))
        .or_else(|| io_handler(i, insn))?;
    if let Some(size) = operand_size(i.code()) {
        insn.size = size;
    }
    Some(handler)
}

/// Moves of segment registers, descriptor tables and their checks.
fn segment_handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let aux = |insn: &mut Insn, aux: u8, h: Handler| {
        insn.aux = aux.into();
        h
    };
    Some(match i.code() {
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => segment_moves::mov_from_sreg,
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => segment_moves::mov_to_sreg,
        _ => match i.mnemonic() {
            Mnemonic::Push if i.op0_register().is_segment_register() => segment_moves::push_sreg,
            Mnemonic::Pop if i.op0_register().is_segment_register() => segment_moves::pop_sreg,
            Mnemonic::Les => aux(insn, selector::ES, segment_moves::load_far_pointer),
            Mnemonic::Lds => aux(insn, selector::DS, segment_moves::load_far_pointer),
            Mnemonic::Lss => aux(insn, selector::SS, segment_moves::load_far_pointer),
            Mnemonic::Lfs => aux(insn, selector::FS, segment_moves::load_far_pointer),
            Mnemonic::Lgs => aux(insn, selector::GS, segment_moves::load_far_pointer),
            Mnemonic::Sgdt => aux(insn, 0, table_registers::store_table),
            Mnemonic::Sidt => aux(insn, 1, table_registers::store_table),
            Mnemonic::Lgdt => aux(insn, 0, table_registers::load_table),
            Mnemonic::Lidt => aux(insn, 1, table_registers::load_table),
            Mnemonic::Sldt => table_registers::store_ldtr,
            Mnemonic::Str => table_registers::store_tr,
            Mnemonic::Lldt => table_registers::load_ldtr,
            Mnemonic::Ltr => table_registers::load_tr,
            Mnemonic::Smsw => table_registers::store_machine_status,
            Mnemonic::Lmsw => table_registers::load_machine_status,
            Mnemonic::Lar => access_checks::load_access_rights,
            Mnemonic::Lsl => access_checks::load_segment_limit,
            Mnemonic::Verr => aux(insn, 0, access_checks::verify),
            Mnemonic::Verw => aux(insn, 1, access_checks::verify),
            Mnemonic::Arpl => access_checks::adjust_rpl,
            _ => return None,
        },
    })
}

/// Far transfers, interrupts and system calls.
fn transfer_handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let far_pointer = |insn: &mut Insn, h: Handler| {
        insn.aux = i.far_branch_selector().into();
        insn.imm = if i.op0_kind() == OpKind::FarBranch16 {
            i.far_branch16().into()
        } else {
            i.far_branch32().into()
        };
        h
    };
    Some(match i.code() {
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 => far_pointer(insn, far_transfer::jump_pointer),
        Code::Call_ptr1616 | Code::Call_ptr1632 => far_pointer(insn, far_transfer::call_pointer),
        Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 => far_transfer::jump_memory,
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 => far_transfer::call_memory,
        _ => match i.mnemonic() {
            Mnemonic::Retf => far_return::return_far,
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => interrupt_return::interrupt_return,
            Mnemonic::Int => software_interrupt::int_n,
            Mnemonic::Int1 => software_interrupt::int1,
            Mnemonic::Int3 => software_interrupt::int3,
            Mnemonic::Into => software_interrupt::into,
            Mnemonic::Bound => software_interrupt::bound,
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => processor::undefined,
            Mnemonic::Syscall => fast_calls::syscall,
            Mnemonic::Sysret | Mnemonic::Sysretq => fast_calls::sysret,
            Mnemonic::Sysenter => fast_calls::sysenter,
            Mnemonic::Sysexit | Mnemonic::Sysexitq => fast_calls::sysexit,
            _ => return None,
        },
    })
}

/// Control, debug and model-specific registers, flags, processor state.
fn register_handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let aux = |insn: &mut Insn, aux: u8, h: Handler| {
        insn.aux = aux.into();
        h
    };
    Some(match i.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => control::read_control,
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => control::write_control,
        Code::Mov_r32_dr | Code::Mov_r64_dr => debug_registers::read_debug,
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => debug_registers::write_debug,
        _ => match i.mnemonic() {
            Mnemonic::Clts => control::clear_task_switched,
            Mnemonic::Rdmsr => msr::read_msr,
            Mnemonic::Wrmsr => msr::write_msr,
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => flag_instructions::push_flags,
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => flag_instructions::pop_flags,
            Mnemonic::Cli => flag_instructions::clear_interrupt,
            Mnemonic::Sti => flag_instructions::set_interrupt,
            Mnemonic::Clac => aux(insn, 0, flag_instructions::change_access_check),
            Mnemonic::Stac => aux(insn, 1, flag_instructions::change_access_check),
            Mnemonic::Swapgs => fast_calls::swapgs,
            Mnemonic::Rdfsbase => aux(insn, 0, fast_calls::read_base),
            Mnemonic::Rdgsbase => aux(insn, 1, fast_calls::read_base),
            Mnemonic::Wrfsbase => aux(insn, 0, fast_calls::write_base),
            Mnemonic::Wrgsbase => aux(insn, 1, fast_calls::write_base),
            Mnemonic::Cpuid => processor::cpuid,
            Mnemonic::Rdtsc => processor::read_time_stamp,
            Mnemonic::Rdtscp => processor::read_time_stamp_and_id,
            Mnemonic::Rdpmc => processor::read_counter,
            Mnemonic::Rdpid => processor::read_processor_id,
            Mnemonic::Xgetbv => processor::get_xcr,
            Mnemonic::Xsetbv => processor::set_xcr,
            Mnemonic::Hlt => processor::halt,
            Mnemonic::Invd | Mnemonic::Wbinvd => processor::invalidate_caches,
            Mnemonic::Invlpg => processor::invalidate_page,
            Mnemonic::Vmcall | Mnemonic::Vmmcall => processor::hypercall,
            Mnemonic::Invpcid => processor::invalidate_context,
            _ => return None,
        },
    })
}

/// Port input and output: `aux` 1 marks an immediate port.
fn io_handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let (handler, port_operand): (Handler, u32) = match i.mnemonic() {
        Mnemonic::In => (io::input, 1),
        Mnemonic::Out => (io::output, 0),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd if i.op1_kind() == OpKind::Register => {
            return Some(io::input_string);
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => return Some(io::output_string),
        _ => return None,
    };
    insn.aux = u32::from(i.op_kind(port_operand) == OpKind::Immediate8);
    Some(handler)
}

/// The operand size in bytes where it is not that of the first operand.
fn operand_size(code: Code) -> Option<u8> {
    use Code::*;
    Some(match code {
        In_AL_imm8 | In_AL_DX | Out_imm8_AL | Out_DX_AL | Insb_m8_DX | Outsb_DX_m8 => 1,
        In_AX_imm8 | In_AX_DX | Out_imm8_AX | Out_DX_AX | Insw_m16_DX | Outsw_DX_m16 => 2,
        In_EAX_imm8 | In_EAX_DX | Out_imm8_EAX | Out_DX_EAX | Insd_m32_DX | Outsd_DX_m32 => 4,
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS | Popw_ES | Popw_CS | Popw_SS
        | Popw_DS | Popw_FS | Popw_GS | Pushfw | Popfw => 2,
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS | Popd_ES | Popd_SS | Popd_DS
        | Popd_FS | Popd_GS | Pushfd | Popfd => 4,
        Pushq_FS | Pushq_GS | Popq_FS | Popq_GS | Pushfq | Popfq => 8,
        Jmp_ptr1616 | Jmp_m1616 | Call_ptr1616 | Call_m1616 | Retfw | Retfw_imm16 | Iretw => 2,
        Jmp_ptr1632 | Jmp_m1632 | Call_ptr1632 | Call_m1632 | Retfd | Retfd_imm16 | Iretd => 4,
        Jmp_m1664 | Call_m1664 | Retfq | Retfq_imm16 | Iretq => 8,
        Les_r16_m1616 | Lds_r16_m1616 | Lss_r16_m1616 | Lfs_r16_m1616 | Lgs_r16_m1616 => 2,
        Les_r32_m1632 | Lds_r32_m1632 | Lss_r32_m1632 | Lfs_r32_m1632 | Lgs_r32_m1632 => 4,
        Lss_r64_m1664 | Lfs_r64_m1664 | Lgs_r64_m1664 => 8,
        Lgdt_m1632_16 | Lidt_m1632_16 => 2,
        Lgdt_m1632 | Lidt_m1632 => 4,
        Lgdt_m1664 | Lidt_m1664 => 8,
        Sysretd | Sysexitd => 4,
        Sysretq | Sysexitq => 8,
        _ => return None,
    })
}
