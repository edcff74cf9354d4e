//! The `strata` command.
//!
//! | module | what |
//! | --- | --- |
//! | `cli` | the command line as types |
//! | `run` | `strata run`: from arguments to an exit status |
//! | `machines` | the commands that speak to running machines |
//! | `exec` | `strata exec` |
//! | `shares` | folders of the host for a guest |
//! | `copy` | `strata cp` |
//! | `kept` | machines that outlast their process |
//! | `life` | start, restart, rm |
//! | `attach` | console, logs |
//! | `definition` | machines defined in a file |
//! | `figures` | statistics for people |
//! | `network` | network flags |
//! | `confine` | the sandbox of a run |
//! | `console` | keys to the guest, escape keys |
//! | `ports` | named channels of a guest |
//! | `output` | serial output, and what is recognised in it |
//! | `phases` | how long each phase of a start took |
//! | `doctor` | `strata doctor` |
//! | `lockstep` | `strata compare` |
//! | `guest` | the built-in guest |
//! | `images` | `strata image` |
//! | `convert` | `strata image convert`, and `inspect` of files |
//! | `progress` | long work, shown |
//! | `failure` | how errors are told |
//! | `terminal_text` | text of guests, for terminals |

mod attach;
mod cli;
mod confine;
mod console;
mod convert;
mod copy;
mod definition;
mod disk_option;
mod doctor;
mod exec;
mod failure;
mod figures;
mod guest;
mod images;
mod kept;
mod life;
mod lockstep;
mod machines;
mod network;
mod output;
mod phases;
mod ports;
mod progress;
mod quantity;
mod run;
mod shares;
mod terminal_text;
mod update;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command, DemoArgs, Format};

fn main() -> ExitCode {
    let start = Instant::now();
    host_sys::return_large_allocations();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::command(*args, start),
        Command::Ps(args) => machines::ps(&args),
        Command::Stats(args) => machines::stats(&args),
        Command::Engine(args) => machines::engine(&args),
        Command::Update(args) => update::update(&args),
        Command::Pause(args) => machines::pause(&args),
        Command::Resume(args) => machines::resume(&args),
        Command::Stop(args) => machines::stop(&args),
        Command::Start(args) => life::start(&args),
        Command::Restart(args) => life::restart(&args),
        Command::Rm(args) => life::remove(&args),
        Command::Logs(args) => attach::logs(&args),
        Command::Console(args) => attach::console(&args),
        Command::Kill(args) => machines::kill(&args),
        Command::Inspect(args) => machines::inspect(&args),
        Command::Image(args) => images::command(args.command),
        Command::Exec(args) => exec::command(&args),
        Command::Cp(args) => copy::command(&args),
        Command::Doctor(args) => doctor::command(&args),
        Command::Demo(args) => show_demo(&args),
        Command::Compare(args) => lockstep::command(&args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "strata", &mut std::io::stdout());
            Ok(0)
        }
        Command::Version => version(),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => failure::report(&error),
    }
}

/// Status 0 if the guest did all it should on every engine.
fn show_demo(args: &DemoArgs) -> anyhow::Result<u8> {
    let format = match args.format {
        Format::Text => demo::Format::Table,
        Format::Json => demo::Format::Json,
    };
    let all_right = demo::run(&demo::available_engines(), format, &mut std::io::stdout().lock())?;
    Ok(u8::from(!all_right))
}

fn version() -> anyhow::Result<u8> {
    writeln!(std::io::stdout(), "strata {}", env!("CARGO_PKG_VERSION"))?;
    Ok(0)
}
