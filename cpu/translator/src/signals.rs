//! Host faults of translated code: the handler notes where, and sends the
//! thread to the fault exit.
// UNSAFE: installs signal handlers and edits the interrupted context.
#![allow(unsafe_code, reason = "the home of the engine's signal handling")]

use std::cell::Cell;
use std::sync::Once;

use crate::layout::State;

/// What the handler needs to know of the code this thread runs.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    pub code: u64,
    pub code_len: u64,
    pub state: *mut State,
    pub fault_exit: u64,
    /// First address of the page below the call stack.
    pub call_guard: u64,
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

const SIGNALS: [libc::c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

/// Declare that this thread is about to run translated code (or has stopped).
pub(crate) fn set_running(r: Option<Running>) {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(install);
    RUNNING.with(|c| c.set(r));
}

fn install() {
    for signal in SIGNALS {
        // SAFETY: the action is fully initialised; the handler is async-signal-safe:
        // it reads a thread-local cell and edits the context it was given.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext_t to SA_SIGINFO handlers.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let gregs = &mut context.uc_mcontext.gregs;
    let rip = &mut gregs[libc::REG_RIP as usize];
    if let Some(r) = RUNNING.with(Cell::get)
        && (*rip as u64).wrapping_sub(r.code) < r.code_len
    {
        // SAFETY: the kernel passes a valid siginfo_t of a fault.
        let address = unsafe { (*info).si_addr() } as u64;
        if signal == libc::SIGSEGV && address.wrapping_sub(r.call_guard) < crate::call_stack::GUARD as u64 {
            // The call stack is full: empty it and execute the call again.
            // SAFETY: the state outlives the time this thread runs translated code.
            gregs[libc::REG_RSP as usize] = unsafe { (*r.state).call_rsp_empty } as i64;
            return;
        }
        // SAFETY: as above.
        unsafe { (*r.state).site = *rip as u64 };
        *rip = r.fault_exit as i64;
        return;
    }
    // Not ours: die of it as the process would have.
    // SAFETY: restores the default action, under which returning re-raises the fault.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
