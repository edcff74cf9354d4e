//! The owner of a machine's life.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifecycle::{EngineChoice, EnginePlan, Outcome, Recorder, Stage, Vm, VmError};
use serde_json::json;
use vm_api::{Action, MachineId, MachineInfo, MachineName, Refusal, RefusalKind, Reply, State};

use crate::desk::{Pending, Requests};
use crate::{devices, figures};

/// Who the machine is to others.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its identifier.
    pub id: MachineId,
    /// The name it was given.
    pub name: Option<MachineName>,
}

/// An engine switch arranged beforehand.
pub struct Switch {
    /// How long after the start.
    pub after: Duration,
    /// To which engine.
    pub plan: EnginePlan,
}

/// The machine and those who may ask something of it.
pub struct Owner {
    vm: Vm,
    /// Absent where the machine has no control socket.
    served: Option<(Identity, Requests)>,
    engine_reason: String,
    /// Goes along to every engine that can use it.
    recorder: Option<Arc<Recorder>>,
    began: Instant,
    /// The process may make sockets for networks that come later.
    may_connect: bool,
    /// Told when the machine continued on another engine, and how long the guest stood.
    on_switch: Told,
    /// Told what the machine begins to wait for.
    on_wait: Box<dyn FnMut(&str) + Send>,
    /// What was last told.
    waits_for: Option<String>,
}

/// Receives an engine's name and a duration.
type Told = Box<dyn FnMut(&str, Duration) + Send>;

pub(crate) fn refused(e: impl std::error::Error) -> Refusal {
    Refusal::new(RefusalKind::Refused, e.to_string())
}

impl Owner {
    /// Own a machine that executes on the planned engine. `began` is when the
    /// process took it up.
    pub fn new(vm: Vm, plan: &EnginePlan, began: Instant) -> Self {
        let (engine_reason, recorder) = (plan.reason.clone(), plan.recorder.clone());
        Owner {
            vm,
            served: None,
            engine_reason,
            recorder,
            began,
            may_connect: false,
            on_switch: Box::new(|_, _| {}),
            on_wait: Box::new(|_| {}),
            waits_for: None,
        }
    }

    /// Let networks come later: the process may make sockets.
    pub fn allow_networks(&mut self) {
        self.may_connect = true;
    }

    /// Serve requests that come to a desk, as this machine.
    pub fn serve(&mut self, identity: Identity, requests: Requests) {
        self.served = Some((identity, requests));
    }

    /// Call `told` after each change of engine.
    pub fn on_switch(&mut self, told: impl FnMut(&str, Duration) + Send + 'static) {
        self.on_switch = Box::new(told);
    }

    /// Call `told` when the machine is paused because it waits for something of the
    /// host's, with what that is.
    pub fn on_wait(&mut self, told: impl FnMut(&str) + Send + 'static) {
        self.on_wait = Box::new(told);
    }

    /// The machine.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Start the machine and follow it to its end, or until `timeout` of the
    /// host's time has passed, doing what is asked on the way. The machine is
    /// stopped then.
    ///
    /// # Errors
    /// When the machine cannot start, a reset fails, or an arranged switch does.
    pub fn run(&mut self, switches: Vec<Switch>, timeout: Option<Duration>) -> Result<Outcome, VmError> {
        self.vm.start()?;
        let result = self.follow(switches, timeout);
        self.vm.stop();
        result
    }

    fn follow(&mut self, mut switches: Vec<Switch>, timeout: Option<Duration>) -> Result<Outcome, VmError> {
        let start = Instant::now();
        switches.retain(|s| timeout.is_none_or(|t| s.after < t));
        // The next one is the last.
        switches.sort_by_key(|s| std::cmp::Reverse(s.after));
        loop {
            let next = switches.last().map(|s| s.after).or(timeout);
            if let Some(outcome) = self.vm.watch(next.map(|t| start + t))? {
                return Ok(outcome);
            }
            self.tell_wait();
            self.attend();
            if let Some(switch) = switches.pop_if(|s| s.after <= start.elapsed()) {
                self.switch(switch.plan)?;
            } else if switches.is_empty() && timeout.is_some_and(|t| t <= start.elapsed()) {
                return Ok(Outcome::Timeout);
            }
        }
    }

    /// What the machine waits for, if it is the host's.
    fn waits_for(&self) -> Option<String> {
        let full = self.vm.full_disk()?;
        let spec = self.vm.board().spec().disks.get(full.disk);
        let path = spec.map(|d| d.path.display().to_string()).unwrap_or_default();
        Some(format!("room on the host for disk {} ({path}): free some, and it goes on by itself", full.disk))
    }

    fn tell_wait(&mut self) {
        let now = self.waits_for();
        if self.waits_for != now {
            if let Some(what) = &now {
                (self.on_wait)(what);
            }
            self.waits_for = now;
        }
    }

    /// Do everything that was asked so far.
    fn attend(&mut self) {
        while let Some(pending) = self.served.as_ref().and_then(|(_, requests)| requests.0.try_recv().ok()) {
            let Pending { action, files, answer } = pending;
            // A client that left does not want the answer.
            let _ = answer.try_send(self.act(action, files));
        }
    }

    fn act(&mut self, action: Action, files: Vec<OwnedFd>) -> Result<Reply, Refusal> {
        match action {
            Action::Info => Ok(Reply::Info(Box::new(self.info()))),
            Action::Stats => {
                let stats = self.vm.stats().map_err(refused)?;
                let resident = self.vm.board().memory().resident();
                Ok(Reply::Stats(Box::new(figures::machine(self.info(), &stats, resident))))
            }
            Action::Inspect => Ok(Reply::Inspect(Box::new(self.configuration()))),
            Action::SwitchEngine { engine } => self.switch_to(&engine),
            Action::Update { cpus, memory } => self.update(cpus, memory),
            Action::ResizeDisk { disk, size } => self.resize_disk(disk, size),
            Action::AddDisk { spec } => devices::add_disk(self.vm.board(), spec, files),
            Action::AddNet { spec } => devices::add_net(self.vm.board(), spec, self.may_connect),
            Action::RemoveDevice { id } => {
                self.vm.board().remove_device(&id).map(|()| Reply::Done).map_err(refused)
            }
            Action::ResizeConsole { columns, rows } => match self.vm.board().console() {
                Some(console) => {
                    console.resize(columns, rows);
                    Ok(Reply::Done)
                }
                None => Err(devices::no_size()),
            },
            Action::Pause => {
                self.vm.pause().map_err(refused)?;
                Ok(Reply::Paused { time_stands: self.vm.board().clock().is_stopped() })
            }
            Action::Resume => self.vm.resume().map(|()| Reply::Done).map_err(refused),
            Action::PressPowerButton => {
                if self.vm.stage() == Stage::Paused {
                    self.vm.resume().map_err(refused)?;
                }
                self.vm.board().press_power_button();
                Ok(Reply::Done)
            }
            // The desk's own: no vCPU has to do with it.
            Action::Console => Ok(Reply::Attached),
            Action::End => {
                self.vm.board().events().post(board::MachineEvent::Stop);
                Ok(Reply::Done)
            }
        }
    }

    /// Nothing changes when either cannot be.
    fn update(&mut self, cpus: Option<u32>, memory: Option<u64>) -> Result<Reply, Refusal> {
        let board = self.vm.board();
        board.set_resources(cpus, memory).map_err(refused)?;
        let now = board.resources();
        Ok(Reply::Resources { cpus: now.cpus, memory: now.memory })
    }

    fn resize_disk(&self, disk: usize, size: u64) -> Result<Reply, Refusal> {
        let Some(found) = self.vm.board().disk(disk) else {
            let message = format!("there is no disk-{disk}; strata inspect tells the machine's devices");
            return Err(Refusal::new(RefusalKind::Refused, message));
        };
        found.resize(size).map(|()| Reply::Done).map_err(refused)
    }

    fn switch_to(&mut self, engine: &str) -> Result<Reply, Refusal> {
        let choice: EngineChoice =
            engine.parse().map_err(|e| Refusal::new(RefusalKind::BadRequest, format!("{e}")))?;
        let plan = lifecycle::plan(choice, self.vm.board().clock().is_virtual());
        let took = self.switch(plan).map_err(refused)?;
        let engine = self.vm.engine().name().to_string();
        Ok(Reply::Switched { engine, took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX) })
    }

    /// Continue on the planned engine; how long the guest stood. On error the
    /// machine goes on where it was.
    fn switch(&mut self, mut plan: EnginePlan) -> Result<Duration, VmError> {
        if plan.name() == self.vm.engine().name() {
            return Ok(Duration::ZERO);
        }
        plan.recorder = self.recorder.clone();
        let engine = plan.make(self.vm.board())?;
        let began = Instant::now();
        self.vm.switch_engine(engine)?;
        let took = began.elapsed();
        self.engine_reason = plan.reason;
        (self.on_switch)(self.vm.engine().name(), took);
        Ok(took)
    }

    fn info(&self) -> MachineInfo {
        let spec = self.vm.board().spec();
        let resources = self.vm.board().resources();
        let (id, name) = match &self.served {
            Some((identity, _)) => (identity.id.clone(), identity.name.clone()),
            None => (MachineId::from_number(0), None),
        };
        MachineInfo {
            id,
            name,
            state: match self.vm.stage() {
                Stage::Created => State::Created,
                Stage::Running => State::Running,
                Stage::Paused => State::Paused,
                Stage::Stopped => State::Stopped,
            },
            waits_for: self.waits_for(),
            engine: self.vm.engine().name().to_string(),
            engine_reason: self.engine_reason.clone(),
            vcpus: resources.cpus,
            memory: resources.memory,
            cpu: spec.cpu.clone(),
            uptime_ms: figures::millis(self.began.elapsed()),
            pid: std::process::id(),
        }
    }

    fn configuration(&self) -> serde_json::Value {
        let board = self.vm.board();
        json!({
            "machine": self.info(),
            "spec": board.spec(),
            "cpu_model": {
                "name": board.model().name(),
                "features": board.model().feature_names(),
                "tsc_khz": board.model().tsc_khz(),
            },
            "devices": board.devices(),
            "reboots": self.vm.policy().reboot,
            "strata": env!("CARGO_PKG_VERSION"),
        })
    }
}
