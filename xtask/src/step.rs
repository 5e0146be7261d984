//! One command of the gate: says what it runs, how long it took, and what failed.

use std::{
    env,
    ffi::{OsStr, OsString},
    process::Command,
    time::Instant,
};

/// What failed, as the last line says it.
#[derive(Debug)]
pub struct Failure {
    pub what: String,
    pub code: u8,
}

impl Failure {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), code: 1 }
    }
}

#[derive(Debug)]
pub struct Step {
    name: &'static str,
    command: Command,
    shown: String,
}

impl Step {
    pub fn new(name: &'static str, program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        Self { name, command: Command::new(program), shown: program.display().to_string() }
    }

    /// A cargo command, by the cargo that runs this.
    pub fn cargo<const N: usize>(name: &'static str, arguments: [&str; N]) -> Self {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut step = Self::new(name, cargo);
        step.shown = "cargo".into();
        step.args(arguments)
    }

    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        for argument in arguments {
            let argument = argument.as_ref();
            self.command.arg(argument);
            self.shown.push(' ');
            self.shown.push_str(&argument.to_string_lossy());
        }
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref();
        self.command.env(name, value);
        self.shown = format!("{name}={:?} {}", value.to_string_lossy(), self.shown);
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs it to its end; its output goes where ours goes. Its exit code becomes ours.
    #[allow(clippy::disallowed_methods, reason = "a build tool's wall time, shown to people")]
    pub fn run(mut self) -> Result<(), Failure> {
        println!("\n==> {}: {}", self.name, self.shown);
        let begun = Instant::now();
        let status = self.command.status();
        let seconds = begun.elapsed().as_secs_f32();
        match status {
            Ok(status) if status.success() => {
                println!("<== {}: {seconds:.1} s", self.name);
                Ok(())
            }
            Ok(status) => {
                let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                let what = format!("{} ({status}, {seconds:.1} s): {}", self.name, self.shown);
                Err(Failure { what, code })
            }
            Err(error) => Err(Failure::new(format!("{}: {}: {error}", self.name, self.shown))),
        }
    }
}
