//! The owner of one machine: it alone starts, parks, resets, moves and ends vCPUs.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use board::{Board, BoardError, MachineEvent, TimerQueue};
use engine::attention_bits::STOP;
use engine::{Engine, EngineError, Vcpu};
use x86_state::{ApicState, CpuState};

use crate::ending::{self, EndFault};
use crate::exit::Outcome;
use crate::gate::{Gate, Order};
use crate::room::{self, FullDisk};
use crate::stage::{Action, IllegalAction, Stage};
use crate::stats::{VcpuStats, VmStats};
use crate::vcpu_thread::{self, Shared, Times};
use crate::virtual_time;

/// Why an operation on a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Not now.
    #[error(transparent)]
    Illegal(#[from] IllegalAction),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The board could not be brought to its start state.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The host refused a thread.
    #[error("cannot start a thread for {what}: {source}; raise the process limit (ulimit -u)")]
    Thread {
        /// What the thread is for.
        what: String,
        /// The host's error.
        source: std::io::Error,
    },
}

/// What to do when the guest resets or panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Start again after a reset or a triple fault; else end.
    pub reboot: bool,
}

/// The architectural state of all vCPUs and their local APICs.
#[derive(Debug, Clone)]
pub struct MachineState {
    /// One a vCPU.
    pub cpus: Vec<CpuState>,
    /// One a vCPU.
    pub apics: Vec<ApicState>,
}

/// A machine and its threads.
pub struct Vm {
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    stage: Stage,
    policy: Policy,
    threads: Vec<JoinHandle<()>>,
    timer: Option<JoinHandle<()>>,
    resets: u32,
    /// The console has shown a panic.
    panicked: bool,
    /// Paused until the host has room.
    full: Option<FullDisk>,
    /// What its end could not do.
    end_faults: Vec<EndFault>,
}

impl Vm {
    /// Make the vCPUs of a board on an engine, in the board's start state.
    ///
    /// # Errors
    /// When the engine refuses a vCPU or its state, or boot images cannot be loaded.
    pub fn new(board: Arc<Board>, engine: Arc<dyn Engine>, policy: Policy) -> Result<Self, VmError> {
        let boot = board.power_on()?;
        let mut vcpus = create_vcpus(&board, engine.as_ref())?;
        board.use_local_interrupts(engine.local_interrupts());
        set_boot_state(&board, &mut vcpus, &boot)?;
        let shared = Arc::new(Shared {
            events: board.events().clone(),
            board,
            gate: Gate::new(),
            times: vcpus.iter().map(|_| Times::default()).collect(),
            slots: vcpus.into_iter().map(Mutex::new).collect(),
        });
        Ok(Vm {
            shared,
            engine,
            stage: Stage::Created,
            policy,
            threads: Vec::new(),
            timer: None,
            resets: 0,
            panicked: false,
            full: None,
            end_faults: Vec::new(),
        })
    }

    /// Where the machine is in its life.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The engine that executes it.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// The board.
    pub fn board(&self) -> &Arc<Board> {
        &self.shared.board
    }

    /// What happens when the guest resets.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The disk whose file system has no room, while the machine is paused for that.
    pub fn full_disk(&self) -> Option<&FullDisk> {
        self.full.as_ref()
    }

    /// How often the guest has reset.
    pub fn resets(&self) -> u32 {
        self.resets
    }

    /// Start the threads and let the vCPUs go.
    ///
    /// # Errors
    /// When the machine has been started, or the host refuses a thread.
    pub fn start(&mut self) -> Result<(), VmError> {
        let next = self.stage.after(Action::Start)?;
        let board = &self.shared.board;
        if board.clock().is_virtual() {
            let shared = self.shared.clone();
            self.threads.push(spawn("vcpus", move || {
                let _told = DeathNotice { shared: &shared, vcpu: 0 };
                virtual_time::main(&shared);
            })?);
        } else {
            for index in 0..self.shared.slots.len() {
                let shared = self.shared.clone();
                self.threads.push(spawn(&format!("vcpu{index}"), move || {
                    let _told = DeathNotice { shared: &shared, vcpu: index };
                    vcpu_thread::main(&shared, index);
                })?);
            }
            let (queue, owner) = (board.timers().clone(), Arc::downgrade(board));
            self.timer = Some(spawn("timers", move || {
                // Guest timers are as precise as the host allows, not rounded to the default 50 us.
                host_sys::set_thread_timer_slack(Duration::from_nanos(1));
                TimerQueue::serve(&queue, &owner, Board::expire);
            })?);
        }
        self.shared.gate.order(Order::Run);
        self.stage = next;
        Ok(())
    }

    /// Park the vCPUs at an instruction boundary. The guest's time stands still
    /// until [`Vm::resume`], unless the engine shows guests a counter of the
    /// host's ([`Engine::time_can_stop`]).
    ///
    /// # Errors
    /// When the machine does not run.
    pub fn pause(&mut self) -> Result<(), VmError> {
        if self.full.take().is_some() {
            // It stands; from now on until somebody resumes it.
            return Ok(());
        }
        let next = self.stage.after(Action::Pause)?;
        self.bring_to_gate();
        self.shared.board.quiesce_devices();
        self.stop_clock();
        self.stage = next;
        Ok(())
    }

    /// Let parked vCPUs go on.
    ///
    /// # Errors
    /// When the machine is not paused, or the engine cannot bring the guest's
    /// time back to where it stood; the machine stays paused then.
    pub fn resume(&mut self) -> Result<(), VmError> {
        let next = self.stage.after(Action::Resume)?;
        self.start_clock()?;
        self.full = None;
        self.shared.board.resume_devices();
        self.shared.gate.order(Order::Run);
        self.stage = next;
        Ok(())
    }

    fn stop_clock(&self) {
        if self.engine.time_can_stop() {
            self.shared.board.clock().stop();
        }
    }

    fn start_clock(&self) -> Result<(), VmError> {
        let board = &self.shared.board;
        let stood = board.clock().start();
        if stood > 0 {
            let ticks = u128::from(stood) * u128::from(board.clock().tsc_khz()) / 1_000_000;
            for slot in &self.shared.slots {
                let mut vcpu = slot.lock().unwrap_or_else(PoisonError::into_inner);
                vcpu.clock_stood_still(ticks as u64)?;
            }
            board.timers().clock_started();
        }
        Ok(())
    }

    fn bring_to_gate(&self) {
        self.park(Order::Park);
        self.shared.gate.wait_parked(self.threads.len());
    }

    /// Give an order and bring every vCPU to the gate.
    fn park(&self, order: Order) {
        self.shared.gate.order(order);
        for attention in self.shared.board.attentions() {
            attention.raise(STOP);
        }
    }

    /// Run `f` with the vCPUs parked and, but for [`Action::Observe`], the clock
    /// going, in a stage that allows `action`. A running machine whose `f` failed is left paused.
    fn while_parked<T>(
        &mut self,
        action: Action,
        f: impl FnOnce(&mut Self) -> Result<T, VmError>,
    ) -> Result<T, VmError> {
        let stage = self.stage.after(action)?;
        if stage == Stage::Running {
            self.bring_to_gate();
            self.stage = Stage::Paused;
            let value = f(self)?;
            self.resume()?;
            return Ok(value);
        }
        // Counters need no clock; what moves or exports state does.
        let stood = action != Action::Observe && self.shared.board.clock().is_stopped();
        if stood {
            // Engines relate hardware's counters to a clock that runs.
            self.start_clock()?;
        }
        let result = f(self);
        if stood {
            self.stop_clock();
        }
        result
    }

    /// Back to power-up state: devices, memory images, vCPUs.
    ///
    /// # Errors
    /// When the stage does not allow it, or an image can no longer be loaded;
    /// the machine stays paused then.
    pub fn reset(&mut self) -> Result<(), VmError> {
        self.while_parked(Action::Reset, |vm| {
            let shared = &vm.shared;
            // An engine may still have to complete an access to memory or a device: to the old ones.
            for slot in &shared.slots {
                slot.lock().unwrap_or_else(PoisonError::into_inner).state()?;
            }
            // What the guest posted before its reset is past; what others want of the owner is not,
            // nor that a vCPU has no thread any more. What it gave up it has given up.
            let lost = shared.gate.has_lost_threads();
            let mut wishes = Vec::new();
            while let Some(event) = shared.board.event_queue().poll() {
                match event {
                    MachineEvent::Stop | MachineEvent::Attend => wishes.push(event),
                    MachineEvent::Failed { .. } if lost => wishes.push(event),
                    MachineEvent::Ejected { kind, slot } => shared.board.ejected(kind, slot),
                    _ => {}
                }
            }
            wishes.into_iter().for_each(|e| shared.events.post(e));
            for attention in shared.board.attentions() {
                attention.clear(u32::MAX);
            }
            let boot = shared.board.power_on()?;
            for (index, slot) in shared.slots.iter().enumerate() {
                let mut vcpu = slot.lock().unwrap_or_else(PoisonError::into_inner);
                vcpu.set_state(&start_state(&shared.board, index, &boot))?;
            }
            vm.resets += 1;
            Ok(())
        })
    }

    /// The state of all vCPUs.
    ///
    /// # Errors
    /// When the stage does not allow it or the engine cannot export.
    pub fn state(&mut self) -> Result<MachineState, VmError> {
        self.while_parked(Action::SwitchEngine, |vm| vm.export())
    }

    fn export(&self) -> Result<MachineState, VmError> {
        let locals = self.shared.board.local_interrupts();
        let mut state = MachineState { cpus: Vec::new(), apics: Vec::new() };
        for (index, slot) in self.shared.slots.iter().enumerate() {
            state.cpus.push(slot.lock().unwrap_or_else(PoisonError::into_inner).state()?);
            state.apics.push(locals.apic_state(index)?);
        }
        Ok(state)
    }

    /// Continue on another engine: stop at an instruction boundary, carry all
    /// state over, go on. On error the machine goes on where it was.
    ///
    /// # Errors
    /// When the stage does not allow it, or either engine refuses.
    pub fn switch_engine(&mut self, engine: Arc<dyn Engine>) -> Result<(), VmError> {
        let was_running = self.stage == Stage::Running;
        let result = self.while_parked(Action::SwitchEngine, |vm| vm.move_to(engine));
        if result.is_err() && was_running && self.stage == Stage::Paused {
            self.resume()?;
        }
        result
    }

    fn move_to(&mut self, engine: Arc<dyn Engine>) -> Result<(), VmError> {
        let board = self.shared.board.clone();
        // Devices' threads go on: what they send now belongs to the new owner.
        let _held = board.hold_interrupts();
        let state = self.export()?;
        let mut vcpus = create_vcpus(&board, engine.as_ref())?;
        let locals = engine.local_interrupts().unwrap_or_else(|| board.platform_interrupts());
        for (index, vcpu) in vcpus.iter_mut().enumerate() {
            vcpu.set_state(&state.cpus[index])?;
            locals.set_apic_state(index, &state.apics[index])?;
        }
        board.use_local_interrupts(engine.local_interrupts());
        // The engine left behind may have written code without marking it.
        board.memory().marks().forget_all_code();
        for (slot, vcpu) in self.shared.slots.iter().zip(vcpus) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = vcpu;
        }
        self.engine = engine;
        Ok(())
    }

    /// Watch the machine until it ends, serving resets by the policy; at the
    /// deadline it is ended.
    ///
    /// # Errors
    /// When a reset fails.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<Outcome, VmError> {
        let outcome = loop {
            match self.watch(deadline)? {
                Some(outcome) => break outcome,
                None if deadline.is_some_and(|d| Instant::now() >= d) => break Outcome::Timeout,
                None => {}
            }
        };
        self.stop();
        Ok(outcome)
    }

    /// Watch the machine until it wants to end, or until the deadline has come or
    /// someone posted [`MachineEvent::Attend`] (`None`), serving resets by the
    /// policy. It is not stopped. A machine that needs room on the host is paused
    /// ([`Vm::full_disk`]) and resumed when there is; that also answers `None`.
    ///
    /// # Errors
    /// When a reset fails.
    pub fn watch(&mut self, deadline: Option<Instant>) -> Result<Option<Outcome>, VmError> {
        loop {
            let next = [deadline, self.full.as_ref().map(FullDisk::next)].into_iter().flatten().min();
            let left = next.map(|d| d.saturating_duration_since(Instant::now()));
            let Some(event) = self.shared.board.event_queue().wait(left) else {
                self.look_for_room()?;
                return Ok(None);
            };
            let outcome = match event {
                MachineEvent::PowerOff => Outcome::PowerOff,
                MachineEvent::Panic => Outcome::Panic,
                MachineEvent::DebugExit(status) => Outcome::DebugExit(status),
                MachineEvent::Stop => Outcome::Stopped,
                MachineEvent::Failed { vcpu, error } => Outcome::Error { vcpu, error },
                MachineEvent::Attend => return Ok(None),
                MachineEvent::PanicNoticed => {
                    self.panicked = true;
                    continue;
                }
                MachineEvent::DiskFull { disk } => {
                    self.wait_for_room(disk)?;
                    return Ok(None);
                }
                MachineEvent::Ejected { kind, slot } => {
                    self.shared.board.ejected(kind, slot);
                    continue;
                }
                MachineEvent::Reset | MachineEvent::TripleFault { .. } if self.panicked => Outcome::Panic,
                MachineEvent::Reset | MachineEvent::TripleFault { .. } if self.policy.reboot => {
                    self.reset()?;
                    continue;
                }
                MachineEvent::Reset => Outcome::Reset,
                MachineEvent::TripleFault { vcpu } => Outcome::TripleFault { vcpu },
            };
            return Ok(Some(outcome));
        }
    }

    /// A disk's file system is full: pause until there is room. A machine that
    /// somebody has paused tries again when it is resumed.
    fn wait_for_room(&mut self, disk: usize) -> Result<(), VmError> {
        if self.stage == Stage::Running {
            self.pause()?;
            self.full = Some(FullDisk::new(&self.shared.board, disk));
            room::forget_events(&self.shared.board);
        }
        Ok(())
    }

    /// Go on if the host has room again.
    fn look_for_room(&mut self) -> Result<(), VmError> {
        let due = self.full.as_mut().filter(|full| full.next() <= Instant::now());
        match due.is_some_and(|full| full.has_room(&self.shared.board)) {
            true => self.resume(),
            false => Ok(()),
        }
    }

    /// What the machine's end could not do for its devices: for the user.
    pub fn end_faults(&self) -> &[EndFault] {
        &self.end_faults
    }

    /// End the machine and its threads, bring its devices to rest and flush its disks,
    /// which takes up to 30 s where the host's storage does not answer
    /// ([`Vm::end_faults`]). Does nothing the second time.
    pub fn stop(&mut self) {
        let Ok(next) = self.stage.after(Action::Stop) else { return };
        self.park(Order::Quit);
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has already printed why.
            let _ = thread.join();
        }
        self.shared.board.timers().stop();
        if let Some(timer) = self.timer.take() {
            let _ = timer.join();
        }
        self.end_faults = ending::finish_devices(&self.shared.board, ending::PATIENCE);
        self.stage = next;
    }

    /// What the vCPUs have done so far. A running machine is parked for the
    /// moment of reading.
    ///
    /// # Errors
    /// When the machine has stopped.
    pub fn stats(&mut self) -> Result<VmStats, VmError> {
        self.while_parked(Action::Observe, |vm| {
            let clock = vm.shared.board.clock();
            let vcpu = |(slot, times): (&Mutex<Box<dyn Vcpu>>, &Times)| {
                let vcpu = slot.lock().unwrap_or_else(PoisonError::into_inner);
                VcpuStats::read(vcpu.as_ref(), (!clock.is_virtual()).then_some(times))
            };
            Ok(VmStats {
                vcpus: vm.shared.slots.iter().zip(&vm.shared.times).map(vcpu).collect(),
                devices: vm.shared.board.counters().to_vec(),
                guest_time: Duration::from_nanos(clock.now()),
                resets: vm.resets,
            })
        })
    }

    /// Instructions retired by all vCPUs, if the engine counts them; the vCPUs
    /// must be parked or ended.
    pub fn retired(&self) -> Option<u64> {
        let mut sum = 0u64;
        for slot in &self.shared.slots {
            sum += slot.lock().unwrap_or_else(PoisonError::into_inner).retired()?;
        }
        Some(sum)
    }

    /// The states of all vCPUs as far as the engine can export them, for a report
    /// on a machine that ended; the vCPUs must be parked or ended.
    pub fn last_states(&self) -> Vec<CpuState> {
        let state =
            |slot: &Mutex<Box<dyn Vcpu>>| slot.lock().unwrap_or_else(PoisonError::into_inner).state().ok();
        self.shared.slots.iter().filter_map(state).collect()
    }

    /// Named counters of all vCPUs, summed; the vCPUs must be parked or ended.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut sums: Vec<(&'static str, u64)> = Vec::new();
        for slot in &self.shared.slots {
            for (name, value) in slot.lock().unwrap_or_else(PoisonError::into_inner).counters() {
                match sums.iter_mut().find(|s| s.0 == name) {
                    Some(sum) => sum.1 += value,
                    None => sums.push((name, value)),
                }
            }
        }
        sums
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells the owner when a vCPU thread ends, and why if it dies of a defect of
/// ours: nobody would otherwise end the machine.
struct DeathNotice<'a> {
    shared: &'a Shared,
    vcpu: usize,
}

impl Drop for DeathNotice<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = EngineError::Host {
                engine: "vcpu thread",
                what: "execute the guest".to_string(),
                source: std::io::Error::other("a defect in Strata; please report the message above"),
            };
            self.shared.events.post(MachineEvent::Failed { vcpu: self.vcpu, error });
        }
        // After the event: who no longer waits for this thread finds it.
        self.shared.gate.thread_ended();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, VmError> {
    std::thread::Builder::new()
        .name(name.to_string())
        .spawn(body)
        .map_err(|source| VmError::Thread { what: name.to_string(), source })
}

fn create_vcpus(board: &Arc<Board>, engine: &dyn Engine) -> Result<Vec<Box<dyn Vcpu>>, EngineError> {
    (0..board.cpus()).map(|index| engine.create_vcpu(board.vcpu_config(index))).collect()
}

/// The bootstrap processor begins as the loaded image wants it; others wait.
fn start_state(board: &Board, index: usize, boot: &CpuState) -> CpuState {
    match index {
        0 => boot.clone(),
        _ => CpuState::reset(false, board.model().signature()),
    }
}

fn set_boot_state(board: &Board, vcpus: &mut [Box<dyn Vcpu>], boot: &CpuState) -> Result<(), EngineError> {
    for (index, vcpu) in vcpus.iter_mut().enumerate() {
        vcpu.set_state(&start_state(board, index, boot))?;
    }
    Ok(())
}
