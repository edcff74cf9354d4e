//! What a guest is told.

use base64ct::{Base64, Encoding};
use serde_json::{Map, Value, json};

use crate::password::PasswordHash;
use crate::volume::{Content, SeedError};

/// Most bytes of files told to a guest: they are read into memory, and a shared
/// folder serves more.
pub const MAX_FILES: u64 = 64 << 20;
/// Longest host name, in bytes (hostname(7)).
const MAX_HOSTNAME: usize = 63;
/// Longest user name, in bytes (useradd(8)).
const MAX_USER: usize = 32;

/// A file to write in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub content: Vec<u8>,
}

/// Who a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Identifier of the machine: a guest that sees a new one takes the rest.
    pub instance: String,
    /// Host name.
    pub hostname: String,
    /// A user to make, who may become root by `sudo`.
    pub user: Option<String>,
    /// The user's password, or root's.
    pub password: Option<PasswordHash>,
    /// SSH public keys that may log in as the user, or as root; one line each.
    pub keys: Vec<String>,
    /// Files to write.
    pub files: Vec<GuestFile>,
    /// A shell command for the console.
    pub command: Option<String>,
}

/// Something cannot be told to a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a host name.
    #[error(
        "\"{0}\" is not a host name; use letters, digits and -, neither first nor last a -, at most {MAX_HOSTNAME}, in parts with dots between"
    )]
    Hostname(String),
    /// Not a user name.
    #[error(
        "\"{0}\" is not a user name; use small letters, digits, - and _, a letter or _ first, at most {MAX_USER}"
    )]
    User(String),
    /// Not a public key.
    #[error("\"{0}\" is not an SSH public key; give the line of a .pub file, e.g. of ~/.ssh/id_ed25519.pub")]
    Key(String),
    /// Not a guest's path.
    #[error("\"{0}\" is not a path for a file in the guest; write an absolute one without . or .. in it")]
    Path(String),
    /// Too much.
    #[error(
        "files of {0} bytes are more than a seed disk carries, {MAX_FILES}; copy them over the network instead"
    )]
    TooMuch(u64),
}

fn is_hostname(text: &str) -> bool {
    let part = |p: &str| {
        let ends = p.bytes().next().zip(p.bytes().last());
        ends.is_some_and(|(a, b)| a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric())
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= MAX_HOSTNAME && text.split('.').all(part)
}

fn is_user(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let all = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b));
    first && all && text.len() <= MAX_USER
}

/// A type, then base64, on one line (sshd(8), AUTHORIZED_KEYS FILE FORMAT, without options).
fn is_key(text: &str) -> bool {
    let mut words = text.split(' ');
    let kind = words.next().is_some_and(|k| ["ssh-", "ecdsa-", "sk-"].iter().any(|p| k.starts_with(p)));
    let data = words
        .next()
        .is_some_and(|d| d.len() > 16 && d.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)));
    kind && data && !text.contains(char::is_control)
}

fn is_path(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('/') else { return false };
    !text.contains('\0') && inner.split('/').all(|p| !p.is_empty() && p != "." && p != "..")
}

impl Identity {
    /// Judge all of it.
    ///
    /// # Errors
    /// The first thing that is wrong, with the value seen and a remedy.
    pub fn validate(&self) -> Result<(), IdentityError> {
        if !is_hostname(&self.hostname) {
            return Err(IdentityError::Hostname(self.hostname.clone()));
        }
        if let Some(user) = self.user.as_ref().filter(|u| !is_user(u)) {
            return Err(IdentityError::User(user.clone()));
        }
        if let Some(key) = self.keys.iter().find(|k| !is_key(k)) {
            return Err(IdentityError::Key(key.clone()));
        }
        if let Some(file) = self.files.iter().find(|f| !is_path(&f.path)) {
            return Err(IdentityError::Path(file.path.clone()));
        }
        match self.files.iter().map(|f| f.content.len() as u64).sum() {
            0..=MAX_FILES => Ok(()),
            more => Err(IdentityError::TooMuch(more)),
        }
    }

    /// The files of the seed disk.
    pub(crate) fn contents(&self) -> Result<Vec<Content>, SeedError> {
        let mut list = vec![
            ("meta-data", text(&self.meta_data().to_string())),
            ("user-data", text(&format!("#cloud-config\n{}", self.user_data()))),
            ("strata/instance", text(&self.instance)),
            ("strata/hostname", text(&self.hostname)),
        ];
        if let Some(user) = &self.user {
            list.push(("strata/user", text(user)));
        }
        if let Some(password) = &self.password {
            list.push(("strata/password", text(password.as_str())));
        }
        if !self.keys.is_empty() {
            list.push(("strata/authorized_keys", text(&self.keys.join("\n"))));
        }
        if !self.files.is_empty() {
            list.push(("strata/files.tar", self.archive().map_err(SeedError::Archive)?));
        }
        if let Some(command) = &self.command {
            list.push(("strata/command", text(command)));
        }
        Ok(list)
    }

    fn archive(&self) -> std::io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for file in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(file.content.len() as u64);
            header.set_mode(file.mode & 0o7777);
            archive.append_data(&mut header, file.path.trim_start_matches('/'), &file.content[..])?;
        }
        archive.into_inner()
    }

    fn meta_data(&self) -> Value {
        json!({ "instance-id": self.instance, "local-hostname": self.hostname })
    }

    /// Cloud-config, as JSON, which YAML is a superset of.
    fn user_data(&self) -> Value {
        let mut data = Map::new();
        let mut set = |key: &str, value: Value| data.insert(key.to_string(), value);
        let keys = (!self.keys.is_empty()).then(|| json!(self.keys));
        let hash = self.password.as_ref().map(PasswordHash::as_str);
        let user = match &self.user {
            Some(name) => json!({
                "name": name, "shell": "/bin/bash", "groups": "sudo", "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": hash.is_none(), "hashed_passwd": hash, "ssh_authorized_keys": keys,
            }),
            None => json!({
                "name": "root", "lock_passwd": hash.is_none(), "hashed_passwd": hash, "ssh_authorized_keys": keys,
            }),
        };
        set("users", json!([without_nulls(user)]));
        set("disable_root", json!(self.user.is_some()));
        set("hostname", json!(self.hostname));
        set("manage_etc_hosts", json!(true));
        let file = |f: &GuestFile| {
            json!({
                "path": f.path, "permissions": format!("{:04o}", f.mode & 0o7777),
                "encoding": "b64", "content": Base64::encode_string(&f.content),
            })
        };
        if !self.files.is_empty() {
            set("write_files", self.files.iter().map(file).collect());
        }
        if let Some(command) = &self.command {
            let script = "( sh -c \"$1\"; echo \"strata: exit status $?\" ) > /dev/console 2>&1; poweroff";
            set("runcmd", json!([["sh", "-c", script, "sh", command]]));
        }
        Value::Object(data)
    }
}

fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.retain(|_, v| !v.is_null());
    }
    value
}

/// A line.
fn text(content: &str) -> Vec<u8> {
    format!("{content}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0 me@here";

    fn identity() -> Identity {
        Identity { instance: "i1".into(), hostname: "box".into(), ..Identity::default() }
    }

    #[test]
    fn each_refusal_names_the_value_seen_and_a_remedy() {
        fn check(change: impl FnOnce(&mut Identity), seen: &str) {
            let mut wrong = identity();
            change(&mut wrong);
            let e = wrong.validate().unwrap_err().to_string();
            assert!(e.contains(seen) && e.contains("; "), "{e}");
        }
        let file = |path: &str| GuestFile { path: path.into(), mode: 0o644, content: Vec::new() };
        for name in ["", "-a", "a-", "a..b", "a b", "a/b", "ü", "a\nb", &"x".repeat(64)] {
            check(|i| i.hostname = name.into(), name);
        }
        for user in ["", "Root", "1a", "-a", "a:b", "a b", "a\n"] {
            check(|i| i.user = Some(user.into()), user);
        }
        for key in
            ["", "ssh-rsa", "-----BEGIN KEY-----", "ssh-rsa not+a+key!", "ssh-rsa AAAAC3NzaC1lZDI1NTE5 a\nb"]
        {
            check(|i| i.keys = vec![KEY.into(), key.into()], key);
        }
        for path in ["", "etc/x", "/", "/a//b", "/a/../b", "/./a", "/a\0"] {
            check(|i| i.files = vec![file(path)], path);
        }
        let big = GuestFile { content: vec![0; MAX_FILES as usize + 1], ..file("/x") };
        check(|i| i.files = vec![big], "67108865");
    }

    #[test]
    fn good_ones_pass() {
        let mut good = identity();
        good.user = Some("me".into());
        good.keys = vec![KEY.into()];
        good.files = vec![GuestFile { path: "/etc/a b".into(), mode: 0o600, content: b"x".to_vec() }];
        good.validate().unwrap();
        for name in ["a", "a-1", "web.example.org", &"x".repeat(63)] {
            good.hostname = name.into();
            good.validate().unwrap();
        }
    }

    #[test]
    fn cloud_init_is_told_the_same() {
        let mut told = identity();
        told.user = Some("me".into());
        told.keys = vec![KEY.into()];
        told.files = vec![GuestFile { path: "/a".into(), mode: 0o100_640, content: b"foob".to_vec() }];
        told.command = Some("echo \"it's\"; id".into());
        let data = told.user_data();
        assert_eq!(data["users"][0]["name"], "me");
        assert_eq!(data["users"][0]["ssh_authorized_keys"][0], KEY);
        assert_eq!(data["users"][0]["lock_passwd"], true);
        assert!(data["users"][0].get("hashed_passwd").is_none());
        assert_eq!(data["write_files"][0]["permissions"], "0640");
        assert_eq!(data["write_files"][0]["content"], "Zm9vYg==");
        assert_eq!(data["runcmd"][0][4], "echo \"it's\"; id");
        assert_eq!(told.meta_data()["instance-id"], "i1");
        let root = identity().user_data();
        assert_eq!((&root["users"][0]["name"], &root["disable_root"]), (&json!("root"), &json!(false)));
    }

    #[test]
    fn files_come_out_of_the_archive_as_they_went_in() {
        let mut told = identity();
        told.files = vec![GuestFile { path: "/opt/x/run".into(), mode: 0o755, content: b"#!".to_vec() }];
        let bytes = told.archive().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries: Vec<_> = archive.entries().unwrap().map(Result::unwrap).collect();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].path().unwrap().to_str(), Some("opt/x/run"));
        assert_eq!(entries[0].header().mode().unwrap(), 0o755);
    }
}
