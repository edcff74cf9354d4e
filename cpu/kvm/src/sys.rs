//! What `kvm-ioctls` leaves out or marks unsafe: a few ioctls, the exit
//! details that live in the shared run page, and the kick.
// UNSAFE: ioctls with pointers to our own structures, and the run page that
// the kernel shares with us.
#![allow(unsafe_code, reason = "KVM ioctls and the run page have no complete safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use kvm_bindings::{
    KVM_MEM_READONLY, kvm_device_attr, kvm_interrupt, kvm_run, kvm_sregs2, kvm_userspace_memory_region,
    kvm_xsave,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::ioctl::{_IOC_READ, _IOC_WRITE, ioctl_expr};

const KVMIO: u32 = 0xae;
const KVM_INTERRUPT: libc::c_ulong = ioctl_expr(_IOC_WRITE, KVMIO, 0x86, size_of::<kvm_interrupt>() as u32);
const KVM_GET_SREGS2: libc::c_ulong = ioctl_expr(_IOC_READ, KVMIO, 0xcc, size_of::<kvm_sregs2>() as u32);
const KVM_SET_SREGS2: libc::c_ulong = ioctl_expr(_IOC_WRITE, KVMIO, 0xcd, size_of::<kvm_sregs2>() as u32);
const KVM_SET_DEVICE_ATTR: libc::c_ulong =
    ioctl_expr(_IOC_WRITE, KVMIO, 0xe1, size_of::<kvm_device_attr>() as u32);
const KVM_GET_DEVICE_ATTR: libc::c_ulong =
    ioctl_expr(_IOC_WRITE, KVMIO, 0xe2, size_of::<kvm_device_attr>() as u32);

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Place `size` bytes of this process at `host` into guest-physical space.
/// The caller keeps that mapping alive as long as the VM.
pub(crate) fn map_memory(
    vm: &VmFd,
    slot: u32,
    guest: u64,
    size: u64,
    host: u64,
    read_only: bool,
) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: if read_only { KVM_MEM_READONLY } else { 0 },
        guest_phys_addr: guest,
        memory_size: size,
        userspace_addr: host,
    };
    // SAFETY: `host..host + size` lies within guest memory's one mapping, which the engine's clone of
    // `GuestMemory` keeps mapped until after the VM is closed; it is shared memory for guests to write.
    unsafe { vm.set_user_memory_region(region) }.map_err(errno)
}

/// Queue an external interrupt (KVM_INTERRUPT); there is no in-kernel interrupt controller.
pub(crate) fn interrupt(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let request = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: the kernel reads one `kvm_interrupt` during the call.
    checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const request) })
}

/// KVM_GET_SREGS2.
pub(crate) fn sregs2(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the kernel writes one `kvm_sregs2` during the call.
    checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_SREGS2, &raw mut sregs) })?;
    Ok(sregs)
}

/// KVM_SET_SREGS2.
pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: the kernel reads one `kvm_sregs2` during the call.
    checked(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SREGS2, std::ptr::from_ref(sregs)) })
}

/// A 64-bit attribute of a vCPU, if this KVM has it.
pub(crate) fn vcpu_attribute(vcpu: RawFd, attribute: &kvm_device_attr) -> Option<u64> {
    let mut value = 0u64;
    let request = kvm_device_attr { addr: &raw mut value as u64, ..*attribute };
    // SAFETY: the kernel writes the eight bytes of `value` during the call.
    checked(unsafe { libc::ioctl(vcpu, KVM_GET_DEVICE_ATTR, &raw const request) }).ok()?;
    Some(value)
}

/// Set a 64-bit attribute of a vCPU.
pub(crate) fn set_vcpu_attribute(vcpu: RawFd, attribute: &kvm_device_attr, value: u64) -> io::Result<()> {
    let request = kvm_device_attr { addr: &raw const value as u64, ..*attribute };
    // SAFETY: the kernel reads the eight bytes of `value` during the call.
    checked(unsafe { libc::ioctl(vcpu, KVM_SET_DEVICE_ATTR, &raw const request) })
}

/// The host's time-stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn read_tsc() -> u64 {
    // SAFETY: RDTSC has no preconditions; every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// KVM_SET_XSAVE.
pub(crate) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> io::Result<()> {
    // SAFETY: the kernel reads 4096 bytes, the size of `kvm_xsave`, unless a process enabled dynamic
    // features (AMX) by arch_prctl, which this one never does.
    unsafe { vcpu.set_xsave(xsave) }.map_err(errno)
}

/// The host error of a KVM call.
pub(crate) fn errno(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}

/// Why KVM_RUN came back, with access to what has to be filled in.
#[derive(Debug)]
pub(crate) enum Exit<'a> {
    /// IN or OUT; several elements of `size` bytes for string instructions.
    Port { port: u16, size: u8, write: bool, data: &'a mut [u8] },
    /// Access to an address that is no memory, or a write to read-only memory.
    Mmio { address: u64, write: bool, data: &'a mut [u8] },
    /// RDMSR that KVM does not answer; [`answer_msr`] does.
    ReadMsr { index: u32 },
    /// WRMSR that KVM does not accept; [`answer_msr`] ends it.
    WriteMsr { index: u32, value: u64 },
    /// HLT.
    Halt,
    /// The guest can take an interrupt now, or another harmless return.
    Nothing,
    /// A signal arrived, or `immediate_exit` was set; no operation is pending any more.
    Interrupted,
    /// Single step.
    Debug,
    /// Triple fault, as KVM sees it.
    Shutdown,
    /// KVM cannot go on: KVM_INTERNAL_ERROR_* and the instruction's bytes if it gave them.
    Internal { suberror: u32, bytes: Vec<u8> },
    /// Anything else.
    Other(String),
}

/// Run the vCPU until it needs something: what, and the CR8 it had then.
pub(crate) fn run(vcpu: &mut VcpuFd) -> io::Result<(Exit<'_>, u64)> {
    enum Kind {
        Port,
        Mmio,
        Msr,
        Internal,
        Plain(Exit<'static>),
    }
    let kind = match vcpu.run() {
        Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Kind::Port,
        Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => Kind::Mmio,
        Ok(VcpuExit::InternalError) => Kind::Internal,
        Ok(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_)) => Kind::Msr,
        Ok(VcpuExit::Hlt) => Kind::Plain(Exit::Halt),
        Ok(VcpuExit::Debug(_)) => Kind::Plain(Exit::Debug),
        Ok(VcpuExit::Shutdown) => Kind::Plain(Exit::Shutdown),
        Ok(VcpuExit::Intr) => Kind::Plain(Exit::Interrupted),
        Ok(VcpuExit::IrqWindowOpen | VcpuExit::SetTpr) => Kind::Plain(Exit::Nothing),
        Ok(other) => Kind::Plain(Exit::Other(format!("{other:?}"))),
        Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => Kind::Plain(Exit::Interrupted),
        Err(e) => return Err(errno(e)),
    };
    let task_priority = vcpu.get_kvm_run().cr8;
    let page: *mut kvm_run = vcpu.get_kvm_run();
    // SAFETY: the page is mapped as long as `vcpu` lives and the returned borrows keep it exclusively
    // borrowed; the exit reason says which member of the union is valid; the kernel keeps `data_offset`
    // and the counts within the pages that kvm-ioctls mapped.
    let exit = unsafe {
        match kind {
            Kind::Plain(exit) => exit,
            Kind::Port => {
                let io = (*page).__bindgen_anon_1.io;
                let data = page.cast::<u8>().add(io.data_offset as usize);
                let len = io.count as usize * usize::from(io.size);
                Exit::Port {
                    port: io.port,
                    size: io.size.max(1),
                    write: io.direction != 0,
                    data: std::slice::from_raw_parts_mut(data, len),
                }
            }
            Kind::Mmio => {
                let mmio = &mut (*page).__bindgen_anon_1.mmio;
                let len = (mmio.len as usize).min(mmio.data.len());
                let (address, write) = (mmio.phys_addr, mmio.is_write != 0);
                Exit::Mmio { address, write, data: &mut mmio.data[..len] }
            }
            Kind::Msr => {
                let msr = (*page).__bindgen_anon_1.msr;
                match (*page).exit_reason {
                    kvm_bindings::KVM_EXIT_X86_WRMSR => Exit::WriteMsr { index: msr.index, value: msr.data },
                    _ => Exit::ReadMsr { index: msr.index },
                }
            }
            Kind::Internal => {
                let failure = (*page).__bindgen_anon_1.emulation_failure;
                let given = failure.ndata >= 4 && failure.flags & 1 != 0;
                let insn = failure.__bindgen_anon_1.__bindgen_anon_1;
                let len = if given { usize::from(insn.insn_size).min(15) } else { 0 };
                Exit::Internal { suberror: failure.suberror, bytes: insn.insn_bytes[..len].to_vec() }
            }
        }
    };
    Ok((exit, task_priority))
}

/// Complete the RDMSR or WRMSR that [`run`] came back for, and nothing else since:
/// with a value, which WRMSR ignores, or with #GP(0).
pub(crate) fn answer_msr(vcpu: &mut VcpuFd, answer: Option<u64>) {
    let run = vcpu.get_kvm_run();
    debug_assert!(matches!(
        run.exit_reason,
        kvm_bindings::KVM_EXIT_X86_RDMSR | kvm_bindings::KVM_EXIT_X86_WRMSR
    ));
    // SAFETY: every member of the union is plain integers within the page; after an MSR exit, the
    // only time this is called, `msr` is what the kernel reads from it.
    let msr = unsafe { &mut run.__bindgen_anon_1.msr };
    msr.error = u8::from(answer.is_none());
    msr.data = answer.unwrap_or(0);
}

/// Makes a vCPU's KVM_RUN return, from any thread.
///
/// `immediate_exit` is set before the signal is sent, so a vCPU thread that is
/// about to enter the guest does not, and one that is inside leaves.
pub(crate) struct Kicker {
    /// The run page's `immediate_exit` byte, until the vCPU is closed.
    immediate_exit: Mutex<Option<NonNull<AtomicU8>>>,
    /// The thread that runs the vCPU, 0 before the first run.
    thread: AtomicI32,
}

// SAFETY: the pointer is used under the mutex only, to an atomic in shared memory.
unsafe impl Send for Kicker {}
// SAFETY: as for Send.
unsafe impl Sync for Kicker {}

impl Kicker {
    /// A kicker for `vcpu`; call [`Kicker::close`] before that is dropped.
    pub(crate) fn new(vcpu: &mut VcpuFd) -> Self {
        install_handler();
        let byte = NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast();
        Kicker { immediate_exit: Mutex::new(Some(byte)), thread: AtomicI32::new(0) }
    }

    /// The calling thread runs the vCPU from now on.
    pub(crate) fn bind(&self) {
        // SAFETY: gettid has no arguments and cannot fail.
        let tid = unsafe { libc::gettid() };
        self.thread.store(tid, Ordering::SeqCst);
    }

    /// Set or clear `immediate_exit`.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        if let Some(byte) = *self.immediate_exit.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: valid until `close`, which takes the pointer out under this lock; AtomicU8 has the
            // layout of u8 and every access of ours to the byte goes through here.
            unsafe { byte.as_ref() }.store(u8::from(on), Ordering::SeqCst);
        }
    }

    /// Make the vCPU thread leave the guest.
    pub(crate) fn kick(&self) {
        self.set_immediate_exit(true);
        let tid = self.thread.load(Ordering::SeqCst);
        // SAFETY: getpid and gettid have no preconditions; tgkill takes integers. A thread id that is
        // stale names at worst another thread of this process, whose handler does nothing.
        unsafe {
            if tid != 0 && tid != libc::gettid() {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGRTMIN());
            }
        }
    }

    /// Forget the run page.
    pub(crate) fn close(&self) {
        *self.immediate_exit.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// SIGRTMIN must interrupt KVM_RUN and do nothing else.
fn install_handler() {
    extern "C" fn nothing(_: libc::c_int) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: a zeroed sigaction is valid; the handler does nothing, so it is async-signal-safe;
        // no SA_RESTART, so that KVM_RUN returns EINTR.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut());
        }
    });
}
