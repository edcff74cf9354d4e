//! Passwords, hashed before they are written anywhere.

use sha_crypt::{CryptError, Sha512Params, sha512_crypt_b64};

/// Characters of a salt (crypt(5)).
const SALT: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// How many of them.
const SALT_LENGTH: usize = 16;

/// A password as crypt(5) keeps it (`$6$`, SHA-512, 5000 rounds).
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// Hash a password with a salt of the host's entropy.
    pub fn of(password: &str) -> PasswordHash {
        let mut salt = [0; SALT_LENGTH];
        for (at, place) in salt.iter_mut().enumerate() {
            // A host without entropy keeps the password, and shows which are equal.
            let number = host_sys::entropy().unwrap_or(at as u64);
            *place = SALT[(number % SALT.len() as u64) as usize];
        }
        PasswordHash::salted(password, &salt)
    }

    fn salted(password: &str, salt: &[u8; SALT_LENGTH]) -> PasswordHash {
        let hash = || -> Result<String, CryptError> {
            sha512_crypt_b64(password.as_bytes(), salt, &Sha512Params::new(5000)?)
        };
        let hash = hash().expect("the rounds and the salt's length are constant and valid");
        PasswordHash(format!("$6${}${hash}", String::from_utf8_lossy(salt)))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for PasswordHash {
    /// Not for logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_crypt() {
        // By `openssl passwd -6 -salt saltsaltsaltsalt 'pass word'`.
        assert_eq!(PasswordHash::salted("pass word", b"saltsaltsaltsalt").as_str(), KNOWN);
        let (one, other) = (PasswordHash::of("x"), PasswordHash::of("x"));
        assert_ne!(one, other, "each has its own salt");
        assert_eq!(format!("{one:?}"), "PasswordHash(..)");
    }

    const KNOWN: &str = "$6$saltsaltsaltsalt$x.kyWlEICsn7PaqziMndBVEoXjUuU1CsTkpkccEAhSJzYD9Q5gYSN/mT4xG5WFnpvDPyOyoCVMGAEcQpsEAK00";
}
