//! Machines that outlast a command: detached, logged, reached, started again,
//! removed; the built program from outside, with firmware of a few instructions
//! as the guest.

mod support;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Host, PATIENCE};

/// Says "hi", echoes what it receives, and powers off when the button was pressed:
/// `mov dx,3f8; mov al,'h'; out dx,al; mov al,'i'; out dx,al; mov al,10; out dx,al;
/// again: mov dx,3fd; in al,dx; test al,1; jz button; mov dx,3f8; in al,dx; out dx,al;
/// button: mov dx,600; in ax,dx; test ax,100; jz again; mov dx,604; mov ax,3c00; out dx,ax; jmp $`
const POLITE: &[u8] = &[
    0xba, 0xf8, 0x03, 0xb0, b'h', 0xee, 0xb0, b'i', 0xee, 0xb0, b'\n', 0xee, 0xba, 0xfd, 0x03, 0xec, 0xa8,
    0x01, 0x74, 0x05, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xba, 0x00, 0x06, 0xed, 0xa9, 0x00, 0x01, 0x74, 0xea,
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x3c, 0xef, 0xeb, 0xfe,
];
/// Says "x" and powers off.
const SHORT: &[u8] =
    &[0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x3c, 0xef, 0xeb, 0xfe];

/// A place with both firmwares.
fn host(name: &str) -> Host {
    let host = Host::new(name);
    host.firmware("polite", POLITE);
    host.firmware("short", SHORT);
    host
}

impl Host {
    /// Start a machine in the background; its identifier.
    fn detach(&self, firmware: &str, more: &[&str]) -> String {
        let line =
            ["run", "-d", "--memory", "2M", "--engine", "interp", "--timeout", "5m", "--firmware", firmware];
        let text = self.check(&[&line[..], more].concat(), 0);
        assert_eq!(text.trim().len(), 8, "an identifier and nothing else: {text}");
        text.trim().to_string()
    }

    fn all(&self) -> Vec<Value> {
        self.json(&["ps", "-a", "--format", "json"]).as_array().expect("a list").clone()
    }

    fn wait_for(&self, what: &str, is: impl Fn() -> bool) {
        let start = Instant::now();
        while !is() {
            assert!(start.elapsed() < PATIENCE, "not: {what}: {:?}", self.all());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_detached_machine_is_logged_stopped_started_and_removed() {
    let host = host("detach");
    let id = host.detach("polite", &["--name", "web"]);
    host.wait_for("it speaks", || host.check(&["logs", "web"], 0).contains("hi"));
    let full = std::fs::File::options().write(true).open("/dev/full").expect("every Linux has it");
    let lost = host.command(&["logs", "web"]).stdout(full).output().expect("the built command starts");
    assert_eq!(lost.status.code(), Some(1), "a log that is not written");
    assert!(host.check(&["rm", "web"], 2).contains("strata stop web"));
    assert!(host.check(&["run", "-d", "--name", "web", "--firmware", "polite"], 2).contains("\"web\""));
    assert!(host.check(&["stop", "web"], 0).contains("powered off"));
    let list = host.all();
    assert_eq!((list.len(), &list[0]["id"], &list[0]["state"]), (1, &id.as_str().into(), &"stopped".into()));
    assert_eq!((&list[0]["end"]["outcome"], &list[0]["end"]["status"]), (&"power-off".into(), &0.into()));
    assert!(host.check(&["ps", "-a"], 0).contains("power-off (0)"));
    assert_eq!(host.check(&["ps", "-q"], 0), "");

    host.check(&["start", "web"], 0);
    assert_eq!(host.all()[0]["state"], "running");
    assert_eq!(host.all()[0]["id"], id.as_str());
    assert!(host.check(&["start", "web"], 2).contains("runs"));
    host.wait_for("it speaks again", || host.check(&["logs", "web"], 0).matches("hi").count() == 2);
    host.check(&["restart", "web"], 0);
    host.wait_for("it speaks once more", || host.check(&["logs", &id[..5]], 0).matches("hi").count() == 3);
    host.check(&["rm", "-f", "web"], 0);
    assert!(host.all().is_empty());
    assert!(host.check(&["logs", "web"], 2).contains("strata ps -a"));
}

#[test]
fn the_console_of_a_detached_machine_can_be_had() {
    let host = host("console");
    host.detach("polite", &["--name", "con"]);
    let mut console = host
        .command(&["console", "con"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = console.stdin.take().expect("piped");
    let mut output = console.stdout.take().expect("piped");
    input.write_all(b"typed here\n").expect("it listens");
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("typed here") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).expect("readable"), 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    assert!(seen.starts_with(b"hi\n"), "what was shown before comes first");
    host.check(&["stop", "con"], 0);
    assert!(console.wait().expect("it ends with the machine").success());
    assert!(host.check(&["logs", "con"], 0).contains("typed here"));
}

#[test]
fn a_machine_that_is_to_go_goes_with_all_it_had() {
    let host = host("rm");
    let id = host.detach("polite", &["--rm"]);
    let directory = host.0.join("state/machines").join(&id);
    assert!(directory.exists());
    assert!(host.check(&["restart", &id], 1).contains("--rm"));
    host.check(&["kill", &id], 0);
    host.wait_for("it is gone", || !directory.exists());
    assert!(host.all().is_empty());
}

/// 16 MiB without zeroes, which begin as a partitioned disk does.
fn write_disk(host: &Host) {
    let mut disk = vec![7; 16 << 20];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    std::fs::write(host.0.join("disk"), disk).expect("writable");
}

#[test]
fn a_second_machine_takes_what_it_changes() {
    use std::os::unix::fs::MetadataExt;
    let host = host("thin");
    write_disk(&host);
    host.check(&["image", "import", "disk", "--name", "img"], 0);
    let ids = [
        host.detach("polite", &["img"]),
        host.detach("polite", &["--disk-size", "32M", "img"]),
        host.detach("polite", &["--disk-copy", "img"]),
    ];
    let directory = |id: &str| host.0.join("state/machines").join(id);
    let taken =
        |id: &str, name: &str| std::fs::metadata(directory(id).join(name)).map_or(0, |m| m.blocks() * 512);
    assert!(taken(&ids[2], "disk.raw") >= 16 << 20, "a copy is one");
    if directory(&ids[0]).join("base").exists() {
        for id in &ids[..2] {
            assert!((1..1 << 20).contains(&taken(id, "disk.qcow2")), "{}", taken(id, "disk.qcow2"));
        }
        let inspected = host.json(&["image", "inspect", &format!("./state/machines/{}/disk.qcow2", ids[1])]);
        assert_eq!((&inspected["virtual_size"], &inspected["backing"]), (&(32 << 20).into(), &"base".into()));
        // A header that names another file is not followed.
        host.check(&["stop", &ids[0]], 0);
        let disk = directory(&ids[0]).join("disk.qcow2");
        let mut image = std::fs::read(&disk).expect("it is there");
        let at = image.windows(4).position(|name| name == b"base").expect("its header names it");
        image[at..at + 4].copy_from_slice(b"seed");
        std::fs::write(&disk, &image).expect("it is the user's");
        let refused = host.check(&["start", &ids[0]], 2);
        assert!(refused.contains("stands on seed, not on base"), "{refused}");
        image[at..at + 4].copy_from_slice(b"base");
        std::fs::write(&disk, &image).expect("it is the user's");
    } else {
        println!("the file system shares blocks; nothing to measure");
    }
    // What they stand on stays when the image goes, and goes with them.
    host.check(&["image", "rm", "img"], 0);
    host.check(&["restart", &ids[0]], 0);
    host.check(&["rm", "-f", &ids[0], &ids[1], &ids[2]], 0);
    let left = std::fs::read_dir(host.0.join("state/bases")).map_or(0, |d| d.flatten().count());
    assert!(left <= 1, "{left}: its lock alone is left");
}

#[test]
fn images_are_converted_and_inspected() {
    let host = host("convert");
    write_disk(&host);
    assert!(host.check(&["image", "convert", "disk", "new.qcow2"], 0).contains("qcow2 image of 16.0 MiB"));
    let made = host.json(&["image", "inspect", "./new.qcow2"]);
    assert_eq!((&made["format"], &made["virtual_size"]), (&"qcow2".into(), &(16 << 20).into()));
    assert!(made["snapshots"].as_array().is_some_and(Vec::is_empty) && made["backing"].is_null());
    assert!(host.check(&["image", "convert", "disk", "new.qcow2"], 2).contains("--force"));
    host.check(&["image", "convert", "new.qcow2", "back", "--format", "raw", "--force"], 0);
    let read = |name| std::fs::read(host.0.join(name)).expect("it is there");
    assert!(read("back") == read("disk"));
    assert!(host.check(&["image", "convert", "none", "x"], 2).contains("none"));
    assert!(host.check(&["image", "inspect", "./none"], 2).contains("none"));
}

#[test]
fn a_conversion_that_is_interrupted_leaves_nothing() {
    use std::os::unix::fs::FileExt;
    let host = host("interrupted");
    // Data in so many places that copying it takes seconds.
    let disk = std::fs::File::create(host.0.join("disk")).expect("writable");
    disk.set_len(32 << 30).expect("room for holes");
    (0..16 << 10).for_each(|n| disk.write_all_at(&[7; 512], n << 21).expect("room"));
    let names = || {
        let read = std::fs::read_dir(&host.0).expect("the directory");
        read.flatten().filter_map(|e| e.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let started = host.command(&["image", "convert", "disk", "new.qcow2"]).spawn();
    let mut started = started.expect("the built command starts");
    let begun = format!(".new.qcow2.strata-{}", started.id());
    host.wait_for("it has begun", || names().contains(&begun));
    let killed = Command::new("kill").args(["-INT", &started.id().to_string()]).status();
    assert!(killed.expect("it starts").success());
    assert_eq!(started.wait().expect("a child").code(), Some(130));
    assert!(!names().iter().any(|n| n.contains("new.qcow2")), "{:?}", names());
}

#[test]
fn a_machine_whose_runtime_directory_went_can_be_seen_ended_and_removed() {
    let host = host("unreachable");
    host.detach("polite", &["--name", "web"]);
    let lose = || std::fs::remove_dir_all(host.0.join("run")).expect("it is there");
    lose();
    assert_eq!(host.all()[0]["state"], "unreachable");
    assert!(host.check(&["ps", "-a"], 0).contains("unreachable"));
    assert!(host.check(&["stop", "web"], 0).contains("could not be reached and was ended"));
    let stopped = &host.all()[0];
    assert_eq!((&stopped["state"], &stopped["end"]["outcome"]), (&"stopped".into(), &"stopped".into()));
    host.check(&["start", "web"], 0);
    lose();
    // Another may take its name meanwhile: then neither is meant by it.
    let line = ["run", "--engine", "interp", "--memory", "2M", "--timeout", "5m", "--firmware", "polite"];
    let mut other = host
        .command(&[&line[..], &["--name", "web"]].concat())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    host.wait_for("the other runs", || host.check(&["ps"], 0).contains("web"));
    assert!(host.check(&["kill", "web"], 2).contains("2 machines are named"));
    assert!(other.try_wait().expect("a child").is_none());
    assert_eq!(host.all().iter().filter(|m| m["state"] == "unreachable").count(), 1);
    let id = host.all().into_iter().find(|m| m["state"] == "running").expect("it runs")["id"].clone();
    host.check(&["kill", id.as_str().expect("text")], 0);
    assert!(other.wait().expect("it ends").code().is_some());
    host.check(&["rm", "-f", "web"], 0);
    assert!(host.all().is_empty());
}

#[test]
fn a_machine_that_is_not_found_at_once_is_not_ended_by_force() {
    let host = host("elsewhere");
    host.detach("polite", &["--name", "web"]);
    // A process keeps the lock under which machines are found.
    let lock = std::fs::File::open(host.0.join("run/.lock")).expect("it is there");
    lock.lock().expect("nobody has it");
    let refused: Vec<_> = std::thread::scope(|scope| {
        let commands = [&["stop", "web"][..], &["kill", "web"], &["rm", "-f", "web"], &["restart", "web"]];
        let commands = commands.map(|command| scope.spawn(|| host.check(command, 1)));
        commands.into_iter().map(|command| command.join().expect("it is refused")).collect()
    });
    assert!(refused.iter().all(|text| text.contains("has held")), "{refused:?}");
    drop(lock);
    assert_eq!(host.all()[0]["state"], "running");
    // An environment that names another runtime directory.
    let run = |arguments: &[&str]| {
        let out = host.command(arguments).env("STRATA_RUNTIME_DIR", host.0.join("other")).output();
        let out = out.expect("the built command starts");
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(run(&["ps"]).contains("running"));
    assert!(run(&["pause", "web"]).contains("paused"));
    assert!(run(&["resume", "web"]).contains("running"));
    assert!(run(&["stop", "web"]).contains("powered off"));
}

#[test]
fn a_detached_machine_outlasts_the_session() {
    let host = host("session");
    let session = host.0.join("session");
    let run = |arguments: &[&str]| {
        let mut command = host.command(arguments);
        command.env_remove("STRATA_RUNTIME_DIR").env("XDG_RUNTIME_DIR", &session);
        let out = command.output().expect("the built command starts");
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    std::fs::create_dir(&session).expect("writable");
    run(&["run", "-d", "--engine", "interp", "--memory", "2M", "--name", "late", "--firmware", "polite"]);
    // In another place than that of machines that are not detached, and by the same name.
    let mut twin = host.command(&["run", "--engine", "interp", "--memory", "2M", "--name", "late"]);
    twin.args(["--firmware", "polite"]).env_remove("STRATA_RUNTIME_DIR").env("XDG_RUNTIME_DIR", &session);
    let refused = twin.output().expect("the built command starts");
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    std::fs::remove_dir_all(&session).expect("it is there");
    assert!(run(&["ps"]).contains("late"));
    assert!(run(&["stop", "late"]).contains("powered off"));
    run(&["rm", "late"]);
}

#[test]
fn a_machine_whose_record_is_lost_is_listed_and_can_be_removed() {
    let host = host("damaged");
    let id = host.detach("polite", &[]);
    host.check(&["stop", &id], 0);
    std::fs::write(host.0.join("state/machines").join(&id).join("machine.json"), "").expect("writable");
    assert!(host.check(&["ps", "-a"], 0).contains("damaged"));
    assert!(host.check(&["start", &id], 2).contains(&format!("strata rm {id}")));
    host.check(&["rm", &id], 0);
    assert!(host.all().is_empty());
}

#[test]
fn a_policy_starts_a_machine_again_until_it_is_stopped() {
    let host = host("policy");
    let id = host.detach("short", &["--restart", "always"]);
    host.wait_for("three lives", || host.check(&["logs", &id], 0).matches('x').count() >= 3);
    host.strata(&["rm", "-f", &id]);
    host.wait_for("it is gone", || host.strata(&["rm", "-f", &id]).status.code() == Some(2));
    assert!(host.check(&["run", "--restart", "always", "--firmware", "short"], 2).contains("--detach"));
}

/// Run a command that must come back by itself; its status.
fn comes_back(host: &Host, line: &[&str]) -> Option<i32> {
    let mut child = host.command(line).stderr(Stdio::null()).spawn().expect("the built command starts");
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("a child");
            panic!("{line:?} does not come back");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many supervisors a machine has.
fn supervisors(id: &str) -> usize {
    let supervises = |line: &Vec<u8>| {
        let words: Vec<_> = line.split(|b| *b == 0).collect();
        words.contains(&id.as_bytes()) && words.contains(&&b"--supervise"[..])
    };
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok()).filter(supervises).count()
}

#[test]
fn a_policy_does_not_repeat_a_start_that_failed() {
    let host = host("mistyped");
    let line = ["run", "-d", "--restart", "always", "--engine", "interp", "--memory", "2M"];
    let line = [&line[..], &["--firmware", "polite", "--name", "web", "-v"]].concat();
    assert_eq!(comes_back(&host, &[&line[..], &["none:/x"]].concat()), Some(2));
    assert!(host.all().is_empty());
    std::fs::create_dir(host.0.join("folder")).expect("writable");
    assert_eq!(comes_back(&host, &[&line[..], &["folder:/x"]].concat()), Some(0));
    host.check(&["stop", "web"], 0);
    std::fs::remove_dir(host.0.join("folder")).expect("it is there");
    assert_eq!(comes_back(&host, &["start", "web"]), Some(2));
    assert_eq!(host.all()[0]["state"], "stopped");
}

#[test]
fn a_machine_that_is_started_anew_has_one_supervisor() {
    let host = host("supervisors");
    let id = host.detach("polite", &["--restart", "always"]);
    assert_eq!(supervisors(&id), 1);
    let alone = |what: &str| {
        host.wait_for(what, || supervisors(&id) == 1);
        // Longer than the first pauses of one that goes on.
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!((supervisors(&id), host.all()[0]["state"].as_str()), (1, Some("running")), "{what}");
    };
    host.check(&["restart", &id], 0);
    alone("restarted");
    // By itself it would begin again after a pause.
    host.check(&["kill", &id], 0);
    host.check(&["start", &id], 0);
    alone("started");
}

#[test]
fn a_machine_is_started_again_when_its_program_was_replaced() {
    let host = host("upgrade");
    let program = host.0.join("strata");
    let built = env!("CARGO_BIN_EXE_strata");
    std::fs::hard_link(built, &program).or_else(|_| std::fs::copy(built, &program).map(drop)).expect("room");
    let settings = host.command(&[]);
    let settings = settings.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut command = Command::new(&program);
    command.envs(settings);
    let line = ["run", "-d", "--restart", "always", "--engine", "interp", "--memory", "2M", "--name", "web"];
    command.args(line).args(["--firmware", "short"]).current_dir(&host.0).stdin(Stdio::null());
    assert!(command.output().expect("it starts").status.success());
    std::fs::remove_file(&program).expect("it is there");
    let lives = || host.check(&["logs", "web"], 0).matches('x').count();
    let before = lives();
    host.wait_for("two more lives", || lives() >= before + 2);
}

#[test]
fn a_machine_that_did_not_come_to_run_is_not_kept() {
    let host = host("trial");
    write_disk(&host);
    host.check(&["image", "import", "disk", "--name", "img"], 0);
    let line = ["run", "--engine", "interp", "--memory", "2M", "--name", "web"];
    for wrong in [
        &["--firmware", "polite", "-v", "none:/x"][..],
        &["--rm", "--firmware", "polite", "-v", "none:/x"],
        &["--firmware", "none"],
        // Told when the process is confined already.
        &["--kernel", "disk"],
    ] {
        let status = host.strata(&[&line[..], wrong, &["img"]].concat()).status.code();
        assert!(matches!(status, Some(1 | 2)), "{wrong:?}: {status:?}");
        let left = std::fs::read_dir(host.0.join("state/machines")).expect("the store").flatten();
        let left: Vec<_> = left.map(|e| e.file_name()).filter(|n| n != ".lock").collect();
        assert!(left.is_empty(), "{wrong:?}: {left:?}");
    }
    // One that ran is.
    assert_eq!(host.strata(&[&line[..], &["--firmware", "short", "img"]].concat()).status.code(), Some(0));
    assert_eq!(host.all().len(), 1);
}

#[test]
fn what_cannot_start_is_told_and_leaves_nothing() {
    let host = host("refuse");
    for (line, seen) in [
        (&["run", "-d", "--kernel", "none"][..], "none"),
        (&["run", "-d", "--firmware", "polite", "--memory", "1M"], "1 MiB"),
        (&["run", "no-such-image"], "no-such-image"),
        (&["run", "-f", "none.toml"], "none.toml"),
        (&["logs", "nobody"], "nobody"),
        (&["start", "nobody"], "nobody"),
        (&["console", "nobody"], "nobody"),
    ] {
        assert!(host.check(line, 2).contains(seen), "{line:?}");
        assert!(host.all().is_empty(), "{line:?}");
    }
}

#[test]
fn a_file_defines_a_machine_and_the_command_line_goes_before_it() {
    let host = host("file");
    std::fs::write(
        host.0.join("vm.toml"),
        "firmware = 'polite'\nmemory = '4M'\nengine = 'interp'\nname = 'one'\n",
    )
    .expect("writable");
    host.check(&["run", "-d", "-f", "vm.toml", "--memory", "2M"], 0);
    let list = host.all();
    assert_eq!((&list[0]["name"], &list[0]["memory"]), (&"one".into(), &(2u64 << 20).into()));
    host.check(&["kill", "one"], 0);
    // What it was made of counts, not what the file says now.
    std::fs::write(host.0.join("vm.toml"), "nonsense").expect("writable");
    host.check(&["start", "one"], 0);
    assert_eq!(host.all()[0]["memory"], 2u64 << 20);
}
