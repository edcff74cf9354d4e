//! Prepares the default guest and prints where it is: `fetch_guest [generic]`.

use guest_image::{Flavour, Progress, ensure_guest};

struct Lines;

impl Progress for Lines {
    fn phase(&self, text: &str) {
        eprintln!("{text}");
    }
}

fn main() -> std::process::ExitCode {
    let generic = std::env::args().nth(1).is_some_and(|a| a == "generic");
    let files = match ensure_guest(if generic { Flavour::Generic } else { Flavour::Cloud }, &Lines) {
        Ok(files) => files,
        Err(e) => {
            eprintln!("{e}");
            return std::process::ExitCode::FAILURE;
        }
    };
    println!(
        "{}\n{}\n{}\n{}",
        files.description,
        files.kernel.display(),
        files.initrd.display(),
        files.busybox.display()
    );
    std::process::ExitCode::SUCCESS
}
