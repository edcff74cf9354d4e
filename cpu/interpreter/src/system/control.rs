//! MOV to and from control registers, CLTS (SDM volume 2, MOV control
//! registers; volume 3, 2.5).

use x86_mmu::load_pdptes;
use x86_state::{CpuModel, Feature, PhysicalBits, cr0, cr4, efer};

use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// MOV r, CRn.
pub(super) fn read_control(cpu: &mut Cpu, i: &Insn) -> Step {
    let register = i.ops[1];
    if !matches!(register, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let value = match register {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => {
            cpu.sync_time();
            cpu.bus.read_cr8(cpu.index)
        }
    };
    cpu.set_register(i.ops[0], i.size, value);
    Ok(())
}

/// Bytes of a general register in MOV to and from control and debug registers, which
/// know no other operand size (SDM volume 2, MOV).
pub(super) fn whole_register(cpu: &Cpu) -> u8 {
    if cpu.long64() { 8 } else { 4 }
}

/// MOV CRn, r.
pub(super) fn write_control(cpu: &mut Cpu, i: &Insn) -> Step {
    let register = i.ops[0];
    if !matches!(register, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let value = cpu.register(i.ops[1], whole_register(cpu));
    match register {
        0 => write_cr0(cpu, value)?,
        2 => cpu.cr2 = value,
        3 => write_cr3(cpu, value)?,
        4 => write_cr4(cpu, value)?,
        _ => {
            if value > 15 {
                return Err(cpu.gp(0));
            }
            cpu.sync_time();
            cpu.bus.write_cr8(cpu.index, value);
        }
    }
    Err(Stop::Resync)
}

/// CLTS.
pub(super) fn clear_task_switched(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.require_cpl0()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

/// Whether these controls select PAE paging.
fn pae_paging(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LMA == 0
}

/// The PDPTE registers of the table at `cr3`, or #GP(0).
fn new_pdptes(cpu: &mut Cpu, cr3: u64) -> Result<[u64; 4], Stop> {
    match load_pdptes(&cpu.memory, cr3) {
        Ok(pdptes) => Ok(pdptes),
        Err(_) => Err(cpu.gp(0)),
    }
}

fn write_cr0(cpu: &mut Cpu, value: u64) -> Step {
    const WRITABLE: u64 =
        cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
    let set = |bits: u64| value & bits == bits;
    let upper = value >> 32 != 0;
    let paging_unprotected = set(cr0::PG) && !set(cr0::PE);
    let write_through_uncached = set(cr0::NW) && !set(cr0::CD);
    if upper || paging_unprotected || write_through_uncached {
        return Err(cpu.gp(0));
    }
    let new = value & WRITABLE | cr0::ET;
    let changed = cpu.cr0 ^ new;
    let mut new_efer = cpu.efer;
    if changed & cr0::PG != 0 {
        if set(cr0::PG) {
            if cpu.efer & efer::LME != 0 {
                let tss16 = cpu.tr.kind() & 8 == 0;
                if cpu.cr4 & cr4::PAE == 0 || cpu.segments[1].long() || tss16 {
                    return Err(cpu.gp(0));
                }
                new_efer |= efer::LMA;
            }
        } else {
            if cpu.long64() || cpu.cr4 & cr4::PCIDE != 0 {
                return Err(cpu.gp(0));
            }
            new_efer &= !efer::LMA;
        }
    }
    if changed & (cr0::PG | cr0::CD | cr0::NW) != 0 && pae_paging(new, cpu.cr4, new_efer) {
        cpu.pdpte = new_pdptes(cpu, cpu.cr3)?;
    }
    cpu.cr0 = new;
    cpu.efer = new_efer;
    if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
        cpu.flush_tlb_all();
    }
    cpu.mode_changed();
    Ok(())
}

fn write_cr3(cpu: &mut Cpu, value: u64) -> Step {
    const NO_FLUSH: u64 = 1 << 63;
    let contexts = cpu.cr4 & cr4::PCIDE != 0;
    let mut new = value;
    let keep = contexts && value & NO_FLUSH != 0;
    if contexts {
        new &= !NO_FLUSH;
    }
    if cpu.long_mode() && new >> PhysicalBits::MAX != 0 {
        return Err(cpu.gp(0));
    }
    if pae_paging(cpu.cr0, cpu.cr4, cpu.efer) {
        cpu.pdpte = new_pdptes(cpu, new)?;
    }
    cpu.cr3 = new;
    cpu.switch_address_space(keep);
    Ok(())
}

/// CR4 bits a model lets software set.
fn cr4_mask(model: &CpuModel) -> u64 {
    const BY_FEATURE: [(Feature, u64); 16] = [
        (Feature::Vme, cr4::VME | cr4::PVI),
        (Feature::Tsc, cr4::TSD),
        (Feature::De, cr4::DE),
        (Feature::Pse, cr4::PSE),
        (Feature::Pae, cr4::PAE),
        (Feature::Mce, cr4::MCE),
        (Feature::Pge, cr4::PGE),
        (Feature::Fxsr, cr4::OSFXSR),
        (Feature::Sse, cr4::OSXMMEXCPT),
        (Feature::Umip, cr4::UMIP),
        (Feature::La57, cr4::LA57),
        (Feature::Fsgsbase, cr4::FSGSBASE),
        (Feature::Pcid, cr4::PCIDE),
        (Feature::Xsave, cr4::OSXSAVE),
        (Feature::Smep, cr4::SMEP),
        (Feature::Smap, cr4::SMAP),
    ];
    let available = BY_FEATURE.iter().filter(|(f, _)| model.has(*f));
    available.fold(cr4::PCE, |mask, (_, bits)| mask | bits)
}

fn write_cr4(cpu: &mut Cpu, value: u64) -> Step {
    if value & !cr4_mask(&cpu.model) != 0 {
        return Err(cpu.gp(0));
    }
    let changed = cpu.cr4 ^ value;
    let set_now = changed & value;
    let long = cpu.long_mode();
    let leaves_pae = long && value & cr4::PAE == 0;
    let changes_levels = long && changed & cr4::LA57 != 0;
    let contexts_too_early = set_now & cr4::PCIDE != 0 && (!long || cpu.cr3 & 0xfff != 0);
    if leaves_pae || changes_levels || contexts_too_early {
        return Err(cpu.gp(0));
    }
    let reload = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
    if changed & reload != 0 && pae_paging(cpu.cr0, value, cpu.efer) {
        cpu.pdpte = new_pdptes(cpu, cpu.cr3)?;
    }
    cpu.cr4 = value;
    let flushing = cr4::PSE | cr4::PAE | cr4::PGE | cr4::LA57 | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
    if changed & flushing != 0 {
        cpu.flush_tlb_all();
    }
    cpu.mode_changed();
    Ok(())
}
