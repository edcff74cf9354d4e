//! The virtio console of a stock kernel: hvc0 both ways with its size, and a named
//! port to a program of the host.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use guest_image::Flavour;
use guests::SOFTWARE_ENGINES;
use guests::machine::{Guest, stock_guest};

/// Says which terminal it has, what was typed at it and its size when that changes;
/// answers a line on the port, which has an end while nobody is there. The kernel names ports in sysfs; udev would make links.
const COMMAND: &str = r#"echo "on $(tty), kernel on $(cat /sys/class/tty/console/active);"
read words; echo "heard $words;"
until [ "$(stty size 2>/dev/null)" = "43 132" ]; do sleep 0.1; done; echo "size $(stty size);"
name=$(grep -lx org.strata.test /sys/class/virtio-ports/*/name); port=/dev/$(basename ${name%/name})
exec 3<> $port; until read question <&3; do sleep 0.1; done; echo "answer to $question" >&3
read rest <&3; echo "the port said $rest;"
"#;

/// The one control socket below a runtime directory.
fn control_socket(runtime: &Path) -> PathBuf {
    let machines = std::fs::read_dir(runtime).expect("a runtime directory").flatten();
    let mut sockets = machines.map(|m| m.path().join("control.sock")).filter(|s| s.exists());
    sockets.next().expect("a machine")
}

fn resize(runtime: &Path) {
    let mut control = UnixStream::connect(control_socket(runtime)).expect("a machine that listens");
    let request = r#"{"version":1,"action":{"resize-console":{"columns":132,"rows":43}}}"#;
    writeln!(control, "{request}").expect("it takes a request");
    let mut answer = String::new();
    BufReader::new(control).read_line(&mut answer).expect("an answer");
    assert!(answer.contains("done"), "{answer}");
}

#[test]
#[ignore = "boots stock kernels"]
fn a_stock_kernel_uses_the_console_and_a_named_port() {
    if stock_guest(Flavour::Cloud).is_none() {
        return;
    }
    let directory = std::env::temp_dir().join(format!("strata-consoles-{}", std::process::id()));
    for engine in SOFTWARE_ENGINES {
        let runtime = directory.join(engine);
        std::fs::create_dir_all(&runtime).expect("a directory");
        std::fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .expect("its mode");
        let socket = directory.join(format!("{engine}.port"));
        let port = format!("org.strata.test={}", socket.display());
        let mut running = Guest::new(engine)
            .with(&["--console", "virtio", "--port", &port, "--", COMMAND])
            .environment("STRATA_RUNTIME_DIR", &runtime)
            .start()
            .expect("the guest starts");
        running.wait_for("on /dev/hvc0, kernel on ttyS0 hvc0;").expect("the console");
        running.type_in("some words\n").expect("it takes input");
        running.wait_for("heard some words;").expect("what was typed");
        resize(&runtime);
        running.wait_for("size 43 132;").expect("the size");
        let mut port = UnixStream::connect(&socket).expect("the port's socket");
        port.write_all(b"a question\n").expect("it takes bytes");
        let mut lines = BufReader::new(port.try_clone().expect("a second handle"));
        let mut answer = String::new();
        lines.read_line(&mut answer).expect("an answer");
        assert_eq!(answer, "answer to a question\n", "{engine}");
        port.write_all(b"goodbye\n").expect("it takes bytes");
        running.wait_for("the port said goodbye;").expect("the port's second line");
        let finished = running.finish().expect("the guest ends");
        assert_eq!(finished.status, Some(0), "{engine}:\n{}", finished.text);
    }
    // It may be gone already.
    let _ = std::fs::remove_dir_all(&directory);
}
