//! How errors are told: what failed, why, what to do; and the exit status.

use std::io::Write;
use std::process::ExitCode;

use board::BoardError;
use first_boot::SeedError;
use guest_client::GuestError;
use image_build::BuildError;
use image_convert::ConvertError;
use image_store::StoreError;
use lifecycle::VmError;
use machine_store::KeepError;
use vm_api::RegistryError;

use crate::terminal_text;

/// Something wrong with the command line or an input file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InputError(pub String);

/// The user's input is at fault, not Strata or the host.
fn is_input(error: &anyhow::Error) -> bool {
    // As a context it is no link of the chain of its own.
    error.downcast_ref::<InputError>().is_some()
        || error.chain().any(|e| {
            e.is::<InputError>()
                || e.downcast_ref::<BoardError>().is_some_and(BoardError::is_input)
                || matches!(e.downcast_ref::<VmError>(), Some(VmError::Board(b)) if b.is_input())
                || e.downcast_ref::<RegistryError>().is_some_and(names_a_machine)
                || e.downcast_ref::<GuestError>().is_some_and(|g| g.kind().is_some())
                || e.downcast_ref::<KeepError>().is_some_and(names_a_kept_machine)
                || e.downcast_ref::<BuildError>().is_some_and(names_an_image)
                || e.downcast_ref::<ConvertError>().is_some_and(names_a_file)
                || e.downcast_ref::<StoreError>().is_some_and(names_no_image)
                || matches!(e.downcast_ref::<SeedError>(), Some(SeedError::Identity(_)))
        })
}

/// The kept machine named is at fault.
fn names_a_kept_machine(error: &KeepError) -> bool {
    use KeepError as E;
    matches!(error, E::NameTaken { .. } | E::Unknown(_) | E::Ambiguous(..) | E::Runs(_) | E::Damaged(_))
}

/// What an image is to be made of is at fault.
fn names_an_image(error: &BuildError) -> bool {
    use BuildError as E;
    match error {
        E::Option(_) | E::Disk { .. } => true,
        E::Store(store) => names_no_image(store),
        E::Convert(convert) => names_a_file(convert),
        _ => false,
    }
}

/// What is to be converted, or where to, is at fault.
fn names_a_file(error: &ConvertError) -> bool {
    matches!(error, ConvertError::Open(_) | ConvertError::Exists(_) | ConvertError::Itself(_))
}

/// The image named is at fault.
fn names_no_image(error: &StoreError) -> bool {
    matches!(error, StoreError::Unknown(_) | StoreError::Exists(_))
}

/// The machine named is at fault.
fn names_a_machine(error: &RegistryError) -> bool {
    use RegistryError as E;
    matches!(error, E::NameTaken { .. } | E::Unknown(_) | E::SameName(..) | E::Ambiguous(..))
}

/// Print an error to standard error on the way out; answers the exit status, 1 or 2.
pub fn report(error: &anyhow::Error) -> ExitCode {
    host_sys::restore_terminal();
    ExitCode::from(print(error))
}

/// An error as people read it. Guests and images have a say in it, so the terminal has
/// nothing to obey.
fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for (i, cause) in error.chain().enumerate() {
        let label = if i == 0 { "error" } else { "  cause" };
        // Messages end with their remedy after a semicolon.
        let message = cause.to_string();
        match message.split_once("; ") {
            Some((what, remedy)) => text.push_str(&format!("{label}: {what}\n  remedy: {remedy}\n")),
            None => text.push_str(&format!("{label}: {message}\n")),
        }
    }
    terminal_text::escaped(&text)
}

/// Print an error to standard error; answers the exit status, 1 or 2.
pub fn print(error: &anyhow::Error) -> u8 {
    // Nobody is left to tell when standard error is gone.
    let _ = std::io::stderr().write_all(text(error).as_bytes());
    if is_input(error) { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_holds_nothing_that_a_terminal_obeys() {
        let guest = InputError("\x1b]52;c;eA==\x07no \u{9b}2J; try\tagain".to_string());
        let error = anyhow::Error::new(guest).context("web");
        let shown = text(&error.context("a\rb"));
        assert!(
            shown.starts_with("error: a\\u{d}b\n  cause: web\n  cause: \\u{1b}]52;c;eA==\\u{7}no "),
            "{shown}"
        );
        assert!(shown.ends_with("\\u{9b}2J\n  remedy: try\tagain\n"), "{shown}");
    }
}
