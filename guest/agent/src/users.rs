//! Users and groups, from passwd(5) and group(5) alone: a static program cannot
//! ask the name service.

use std::fs;
use std::io;

use crate::sys::Credentials;

/// A user as a login would set it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name; the number where there is none.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// Identifiers.
    pub credentials: Credentials,
}

/// The rows of a file of fields between colons.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split(':').collect())
}

/// Find `USER[:GROUP]`, each by name or number.
///
/// # Errors
/// When there is no such user or group.
pub fn find(wanted: &str) -> io::Result<User> {
    // Without these files a number still serves.
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    look_up(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

fn look_up(wanted: &str, passwd: &str, group: &str) -> io::Result<User> {
    let missing = |what: &str, name: &str| {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("no {what} \"{name}\" in the guest")))
    };
    let (name, group_name) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted, None),
    };
    let by = |row: &Vec<&str>, name: &str| row.first() == Some(&name) || row.get(2) == Some(&name);
    let mut user = match rows(passwd).find(|r| r.len() >= 7 && by(r, name)) {
        Some(r) => User {
            name: r[0].to_string(),
            home: r[5].to_string(),
            shell: r[6].to_string(),
            credentials: Credentials {
                uid: r[2].parse().map_err(io::Error::other)?,
                gid: r[3].parse().map_err(io::Error::other)?,
                groups: Vec::new(),
            },
        },
        None => match name.parse() {
            Ok(uid) => User {
                name: name.to_string(),
                home: "/".to_string(),
                shell: "/bin/sh".to_string(),
                credentials: Credentials { uid, gid: 0, groups: Vec::new() },
            },
            Err(_) => return missing("user", name),
        },
    };
    if let Some(wanted) = group_name {
        user.credentials.gid = match rows(group).find(|r| r.len() >= 3 && by(r, wanted)) {
            Some(r) => r[2].parse().map_err(io::Error::other)?,
            None => match wanted.parse() {
                Ok(gid) => gid,
                Err(_) => return missing("group", wanted),
            },
        };
    }
    let own = user.credentials.gid;
    let member = |r: &Vec<&str>| r.get(3).is_some_and(|m| m.split(',').any(|m| m == user.name));
    let gids = rows(group).filter(member).filter_map(|r| r[2].parse().ok());
    user.credentials.groups = std::iter::once(own).chain(gids.filter(|g| *g != own)).collect();
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n#c:x:9:9::/:/x\nann:x:1000:1001:A,B:/users/ann:/bin/sh\nbad:x\n";
        let group = "root:x:0:\nann:x:1001:\nsudo:x:27:bob,ann\ndisk:x:6:anna\n";
        let check = |wanted: &str, expect: Option<(u32, u32, &[u32], &str)>| {
            let found = look_up(wanted, passwd, group).ok();
            let found = found.as_ref().map(|u| {
                let c = &u.credentials;
                (c.uid, c.gid, c.groups.as_slice(), u.home.as_str())
            });
            assert_eq!(found, expect, "{wanted}");
        };
        check("root", Some((0, 0, &[0], "/root")));
        check("ann", Some((1000, 1001, &[1001, 27], "/users/ann")));
        check("1000", Some((1000, 1001, &[1001, 27], "/users/ann")));
        check("ann:disk", Some((1000, 6, &[6, 27], "/users/ann")));
        check("ann:77", Some((1000, 77, &[77, 27], "/users/ann")));
        check("5000", Some((5000, 0, &[0], "/")));
        check("bob", None);
        check("bad", None);
        check("ann:none", None);
    }
}
