//! Where agents and prompts are found: the folder asked for, else ./agents, else the copies that
//! are compiled in.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::config::{
    agent::Agent,
    error::{ConfigErrors, Fault, Origin, did_you_mean},
    names,
    source::SourceFile,
};

struct BuiltIn {
    name: &'static str,
    agent: &'static str,
    prompt: &'static str,
}

macro_rules! built_in {
    ($name:literal) => {
        BuiltIn {
            name: $name,
            agent: include_str!(concat!("../../agents/", $name, ".toml")),
            prompt: include_str!(concat!("../../prompts/", $name, ".md")),
        }
    };
}

const BUILT_IN: [BuiltIn; 3] = [built_in!("assistant"), built_in!("lab"), built_in!("transcriber")];

/// The agents that can be run by name.
#[derive(Debug, Clone)]
pub struct Library {
    dir: Option<PathBuf>,
}

impl Library {
    /// `asked` is the folder from a flag, the environment or antiphon.toml; without it `./agents`
    /// is used if it is there.
    ///
    /// # Errors
    /// When the folder asked for is not there.
    pub fn open(asked: Option<&Path>) -> Result<Self, Box<Fault>> {
        match asked {
            Some(dir) if dir.is_dir() => Ok(Self { dir: Some(dir.to_owned()) }),
            Some(dir) => {
                let origin = Origin::Path(dir.display().to_string());
                let fault = Fault::new(names::AGENTS_DIR.env, origin, "is not a folder");
                Err(Box::new(fault.help("it should hold one NAME.toml an agent")))
            }
            None => Ok(Self { dir: Some(PathBuf::from("agents")).filter(|dir| dir.is_dir()) }),
        }
    }

    /// Only the copies compiled in.
    pub fn built_in() -> Self {
        Self { dir: None }
    }

    /// The names of all agents, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut found: BTreeSet<String> =
            BUILT_IN.iter().map(|built_in| built_in.name.to_owned()).collect();
        let entries = self.dir.as_ref().and_then(|dir| dir.read_dir().ok());
        for entry in entries.into_iter().flatten().flatten() {
            let path = entry.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if path.extension().is_some_and(|extension| extension == "toml")
                && let Some(name) = stem.filter(|stem| Agent::is_name(stem))
            {
                found.insert(name.to_owned());
            }
        }
        found.into_iter().collect()
    }

    /// Reads an agent with its prompt.
    ///
    /// # Errors
    /// Every fault of both at once.
    pub fn load(&self, name: &str) -> Result<Agent, ConfigErrors> {
        let file = self.agent_file(name).map_err(|fault| {
            let mut errors = ConfigErrors::default();
            errors.push(*fault);
            errors
        })?;
        let mut agent = Agent::parse(name, &file, |path| self.prompt_file(path))?;
        if let Some(folder) = agent.knowledge.take() {
            let found = self.beside(&folder).find(|path| path.is_dir());
            agent.knowledge = Some(found.ok_or_else(|| {
                let mut errors = ConfigErrors::default();
                let origin = Origin::Path(agent.label.clone());
                let problem = format!("{} is not a folder", folder.display());
                let fault = Fault::new("knowledge.folder", origin, problem);
                errors.push(fault.help("looked for where the prompts are, beside the agents"));
                errors
            })?);
        }
        Ok(agent)
    }

    /// Where a path in an agent file may point: beside the folder of agents, or into it.
    fn beside(&self, path: &Path) -> impl Iterator<Item = PathBuf> {
        let folders = self
            .dir
            .iter()
            .flat_map(|dir| [dir.parent().map_or_else(PathBuf::new, Path::to_owned), dir.clone()]);
        folders.map(move |folder| folder.join(path))
    }

    fn agent_file(&self, name: &str) -> Result<SourceFile, Box<Fault>> {
        let fault =
            |origin, problem: String| Box::new(Fault::new(names::AGENT.env, origin, problem));
        let origin = || Origin::Path(format!("{name}.toml"));
        if !Agent::is_name(name) {
            let problem = "is not an agent's name: letters, digits, - and _".into();
            return Err(fault(origin(), problem));
        }
        if let Some(path) = self.dir.as_ref().map(|dir| dir.join(format!("{name}.toml")))
            && path.exists()
        {
            let origin = Origin::Path(path.display().to_string());
            return SourceFile::read(&path).map_err(|problem| fault(origin, problem));
        }
        if let Some(built_in) = BUILT_IN.iter().find(|built_in| built_in.name == name) {
            let label = format!("built-in agents/{name}.toml");
            return Ok(SourceFile::new(label, built_in.agent));
        }
        let known = self.names();
        let help = match did_you_mean(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", known.join(", ")),
        };
        let missing = fault(origin(), format!("there is no agent `{name}`"));
        Err(Box::new(missing.help(help)))
    }

    /// `prompts/NAME.md` lies beside the folder of agents; a path within that folder is taken too.
    fn prompt_file(&self, path: &str) -> Result<SourceFile, String> {
        if let Some(found) = self.beside(Path::new(path)).find(|candidate| candidate.is_file()) {
            return SourceFile::read(&found);
        }
        let built_in = BUILT_IN.iter().find(|it| path == format!("prompts/{}.md", it.name));
        match built_in {
            Some(built_in) => Ok(SourceFile::new(format!("built-in {path}"), built_in.prompt)),
            None => Err("is not there".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_shipped_agent_is_whole() {
        for built_in in BUILT_IN {
            let agent = Library::built_in().load(built_in.name);
            let agent = agent.unwrap_or_else(|errors| panic!("{}", errors.render(false)));
            assert_eq!(agent.name, built_in.name);
        }
    }

    #[test]
    fn every_agent_in_the_repository_is_compiled_in() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let library = Library::open(Some(&root.join("agents"))).unwrap();
        assert_eq!(library.names(), Library::built_in().names());
        for name in library.names() {
            assert!(!library.load(&name).unwrap().label.starts_with("built-in"));
        }
    }

    #[test]
    fn a_file_in_the_folder_goes_before_the_copy_compiled_in() {
        let dir = tempfile::tempdir().unwrap();
        let agents = dir.path().join("agents");
        fs::create_dir_all(dir.path().join("prompts")).unwrap();
        fs::create_dir_all(&agents).unwrap();
        let text = "[llm]\nprovider = \"openai\"\nmodel = \"m\"\n";
        fs::write(agents.join("assistant.toml"), text).unwrap();
        fs::write(agents.join("mine.toml"), text).unwrap();
        fs::write(dir.path().join("prompts/mine.md"), "Mine.").unwrap();
        let library = Library::open(Some(&agents)).unwrap();
        assert_eq!(library.load("assistant").unwrap().llm.model, "m");
        assert!(library.load("assistant").unwrap().prompt.label().starts_with("built-in"));
        assert!(library.load("mine").unwrap().prompt.label().ends_with("prompts/mine.md"));
        assert!(library.load("lab").unwrap().label.starts_with("built-in"));
        assert_eq!(library.names(), ["assistant", "lab", "mine", "transcriber"]);
    }

    #[test]
    fn a_missing_agent_names_those_there_are() {
        let errors = Library::built_in().load("asistant").unwrap_err();
        assert_eq!(errors.keys(), ["ANTIPHON_AGENT"]);
        assert!(errors.render(false).contains("did you mean `assistant`?"));
        let errors = Library::built_in().load("../etc/passwd").unwrap_err();
        assert!(errors.to_string().contains("is not an agent's name"), "{errors}");
    }

    #[test]
    fn a_missing_prompt_is_a_fault_of_the_agent_file() {
        let dir = tempfile::tempdir().unwrap();
        let text = "prompt = \"prompts/gone.md\"\n[llm]\nprovider = \"openai\"\n";
        fs::write(dir.path().join("a.toml"), text).unwrap();
        let errors = Library::open(Some(dir.path())).unwrap().load("a").unwrap_err();
        assert_eq!(errors.keys(), ["prompt"]);
        assert!(errors.to_string().contains("prompts/gone.md is not there"), "{errors}");
    }

    #[test]
    fn knowledge_is_looked_for_where_prompts_are() {
        let dir = tempfile::tempdir().unwrap();
        let agents = dir.path().join("agents");
        fs::create_dir_all(&agents).unwrap();
        fs::create_dir_all(dir.path().join("prompts")).unwrap();
        fs::write(dir.path().join("prompts/a.md"), "A.").unwrap();
        let text = "[knowledge]\nfolder = \"knowledge/a\"\n[llm]\nprovider = \"openai\"\n";
        fs::write(agents.join("a.toml"), text).unwrap();
        let load = || Library::open(Some(&agents)).unwrap().load("a");
        assert_eq!(load().unwrap_err().keys(), ["knowledge.folder"]);
        fs::create_dir_all(dir.path().join("knowledge/a")).unwrap();
        assert_eq!(load().unwrap().knowledge, Some(dir.path().join("knowledge/a")));
    }

    #[test]
    fn a_folder_that_is_asked_for_must_be_there() {
        let fault = Library::open(Some(Path::new("/nowhere/agents"))).unwrap_err();
        assert_eq!(fault.key, "ANTIPHON_AGENTS_DIR");
    }
}
