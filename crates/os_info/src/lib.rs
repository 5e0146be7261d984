//! What `livekit-signaling` asks of the crate of this name: the operating system's name and version,
//! which it tells the server at every join.
//!
//! The published crate starts `lsb_release` and `getconf` each time and waits for them: 13 ms of every
//! join on the thread of other rooms' tasks (2 cores, Debian 12), and processes that a voice worker
//! has no business starting. This one reads `/etc/os-release` once (os-release(5)).

use std::{fmt, fs, sync::OnceLock};

/// The longest `os-release` that is looked at, in bytes.
const LONGEST: usize = 16 * 1024;

/// The operating system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    os_type: Type,
    version: Version,
}

impl Info {
    pub const fn os_type(&self) -> &Type {
        &self.os_type
    }

    pub const fn version(&self) -> &Version {
        &self.version
    }

    fn parse(os_release: &str) -> Self {
        let value = |key: &str| {
            os_release.lines().find_map(|line| {
                let value = line.trim().strip_prefix(key)?.strip_prefix('=')?;
                let value = value.trim_matches(['"', '\'']);
                (!value.is_empty()).then(|| value.to_owned())
            })
        };
        Self {
            os_type: Type(value("NAME").unwrap_or_else(|| std::env::consts::OS.to_owned())),
            version: Version(value("VERSION_ID").unwrap_or_else(|| "Unknown".to_owned())),
        }
    }
}

/// Its name, such as `Debian GNU/Linux`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type(String);

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Its version, such as `12`; `Unknown` where nothing tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The operating system that this process runs on; read once.
pub fn get() -> Info {
    static INFO: OnceLock<Info> = OnceLock::new();
    INFO.get_or_init(|| {
        let read = |path| fs::read_to_string(path).ok().filter(|text| text.len() <= LONGEST);
        let text = ["/etc/os-release", "/usr/lib/os-release"].into_iter().find_map(read);
        Info::parse(&text.unwrap_or_default())
    })
    .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_version_come_from_os_release() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\n\
                    VERSION_ID=\"12\"\nID=debian\n";
        let info = Info::parse(text);
        assert_eq!(info.os_type().to_string(), "Debian GNU/Linux");
        assert_eq!(info.version().to_string(), "12");
    }

    #[test]
    fn what_is_not_told_is_unknown() {
        let info = Info::parse("VERSION_ID=\n# NAME=x\n");
        assert_eq!(info.os_type().to_string(), std::env::consts::OS);
        assert_eq!(info.version().to_string(), "Unknown");
        assert_eq!(get(), get());
    }
}
