//! What of an agent file is about tools: `builtin_tools`, `transfer_to`, `[knowledge]`, `[[tools]]`,
//! `[[mcp]]`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    config::{
        agent::{Agent, McpReach, McpSettings, ToolSettings},
        agent_file::{finish, ms},
        env::references,
        reader::{Located, Reader},
        resolver::check_url,
    },
    tools::{builtin, telephone::Destination},
};

/// HTTP tools of one agent.
const MAX_TOOLS: usize = 32;
/// MCP servers of one agent.
const MAX_SERVERS: usize = 16;
/// Places that calls may be transferred to.
const MAX_PLACES: usize = 64;

/// The tools of one agent file.
#[derive(Debug, Default)]
pub(super) struct Tools {
    pub http: Vec<ToolSettings>,
    pub mcp: Vec<McpSettings>,
    pub knowledge: Option<PathBuf>,
    pub transfer_to: BTreeMap<String, Destination>,
    pub builtins: Vec<String>,
}

pub(super) fn read(root: &Reader<'_>) -> Tools {
    let mut tools = Tools {
        http: read_http(root),
        mcp: read_mcp(root),
        knowledge: read_knowledge(root),
        transfer_to: read_places(root),
        builtins: Vec::new(),
    };
    tools.builtins = read_builtins(root, &tools);
    tools
}

/// Letters, digits, `-` and `_`, at most 64: what every model takes.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The name of a tool or a server, which no other has.
fn read_name<'a>(table: &Reader<'_>, mut others: impl Iterator<Item = &'a str>) -> String {
    let name = table.string("name");
    let is_own =
        |found: &Located<String>| is_name(&found.value) && others.all(|other| other != found.value);
    if !name.as_ref().is_some_and(is_own) {
        let span = name.as_ref().map_or(0..0, |found| found.span.clone());
        let problem = "must be a name of its own: letters, digits, - and _";
        table.push(table.fault("name", span, problem));
    }
    name.map(|found| found.value).unwrap_or_default()
}

/// Values that may refer to secrets, which come from variables with a prefix of their own: no agent
/// file gets hold of the process's keys.
fn read_secrets(table: &Reader<'_>, key: &'static str) -> Vec<(String, String)> {
    let pairs = table.pairs(key, 32);
    for (_, value) in &pairs {
        for name in references(&value.value).filter(|name| !name.starts_with("TOOL_")) {
            let problem = format!("refers to {name}, which does not begin with TOOL_");
            table.push(table.fault(key, value.span.clone(), problem));
        }
    }
    pairs.into_iter().map(|(name, value)| (name, value.value)).collect()
}

fn read_http(root: &Reader<'_>) -> Vec<ToolSettings> {
    let mut tools: Vec<ToolSettings> = Vec::new();
    for table in root.tables("tools", MAX_TOOLS) {
        let name = read_name(&table, tools.iter().map(|tool| tool.name.as_str()));
        let url = table.string("url");
        if url.as_ref().is_none_or(|found| !found.value.starts_with("http")) {
            let span = url.as_ref().map_or(0..0, |found| found.span.clone());
            table.push(table.fault("url", span, "a tool has an http(s) address"));
        }
        let methods: [(&str, &str); 5] = [
            ("GET", "GET"),
            ("POST", "POST"),
            ("PUT", "PUT"),
            ("PATCH", "PATCH"),
            ("DELETE", "DELETE"),
        ];
        let method = table.choice("method", &methods).unwrap_or("GET");
        let parameters = table
            .json("parameters")
            .unwrap_or_else(|| serde_json::json!({"type": "object", "properties": {}}));
        if parameters["type"] != "object" {
            let problem = "must be the JSON Schema of an object: type = \"object\"";
            table.push(table.fault("parameters", 0..0, problem));
        }
        tools.push(ToolSettings {
            name,
            description: table.text("description").unwrap_or_default(),
            method: method.to_owned(),
            url: url.map(|found| found.value).unwrap_or_default(),
            headers: read_secrets(&table, "headers"),
            parameters,
            sends_body: table
                .boolean("sends_body")
                .unwrap_or(matches!(method, "POST" | "PUT" | "PATCH")),
            timeout: ms(&table, "timeout_ms", 100..=30_000, Duration::from_secs(4)),
            max_bytes: table.integer("max_bytes", 1..=1_000_000).unwrap_or(16_384) as usize,
            allow_private: table.boolean("allow_private").unwrap_or(false),
            outlives_interruption: table.boolean("outlives_interruption").unwrap_or(false),
        });
        finish(&table);
    }
    tools
}

fn read_mcp(root: &Reader<'_>) -> Vec<McpSettings> {
    let mut servers: Vec<McpSettings> = Vec::new();
    for table in root.tables("mcp", MAX_SERVERS) {
        let name = read_name(&table, servers.iter().map(|server| server.name.as_str()));
        let timeout = ms(&table, "timeout_ms", 100..=30_000, Duration::from_secs(8));
        let tools = table.strings("tools", 64).unwrap_or_default();
        let outlive_interruption = table.strings("outlive_interruption", 64).unwrap_or_default();
        let reach = read_reach(&table);
        finish(&table);
        if let Some(reach) = reach {
            servers.push(McpSettings { name, reach, tools, timeout, outlive_interruption });
        }
    }
    servers
}

fn read_reach(table: &Reader<'_>) -> Option<McpReach> {
    match (table.string("command"), table.string("url")) {
        (Some(command), None) => Some(McpReach::Process {
            command: command.value,
            args: table.strings("args", 64).unwrap_or_default(),
            env: read_secrets(table, "env"),
        }),
        (None, Some(url)) => {
            let headers = read_secrets(table, "headers");
            match check_url(&url.value, &["http", "https"]) {
                Ok(url) => Some(McpReach::Http { url, headers }),
                Err(problem) => {
                    table.push(table.fault("url", url.span, problem));
                    None
                }
            }
        }
        (command, url) => {
            let span = command.or(url).map_or(0..0, |found| found.span);
            let problem = "an MCP server has either a `command` or a `url`";
            table.push(table.fault("command", span, problem));
            None
        }
    }
}

fn read_knowledge(root: &Reader<'_>) -> Option<PathBuf> {
    if !root.is_table("knowledge") {
        return None;
    }
    let table = root.table("knowledge");
    let folder = table.text("folder");
    if folder.is_none() {
        table.push(table.fault("folder", 0..0, "names the folder to search"));
    }
    finish(&table);
    folder.map(PathBuf::from)
}

fn read_places(root: &Reader<'_>) -> BTreeMap<String, Destination> {
    let mut places = BTreeMap::new();
    for (name, to) in root.pairs("transfer_to", MAX_PLACES) {
        if let Some(place) = destination(&to.value).filter(|_| is_name(&name)) {
            places.insert(name, place);
        } else {
            let problem =
                format!("`{name}` must be a name for a tel: or sip: address, or for agent:NAME");
            root.push(root.fault("transfer_to", to.span, problem));
        }
    }
    places
}

fn destination(to: &str) -> Option<Destination> {
    if let Some(agent) = to.strip_prefix("agent:") {
        let fresh = agent.strip_suffix("?history=none");
        let name = fresh.unwrap_or(agent);
        let agent = Destination::Agent { name: name.to_owned(), keeps_history: fresh.is_none() };
        return Agent::is_name(name).then_some(agent);
    }
    let rest = ["tel:", "sip:", "sips:"].iter().find_map(|scheme| to.strip_prefix(scheme))?;
    let is_address = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic());
    is_address.then(|| Destination::Address(to.to_owned()))
}

fn read_builtins(root: &Reader<'_>, tools: &Tools) -> Vec<String> {
    let names = root.strings("builtin_tools", 16).unwrap_or_default();
    for name in &names {
        let fault = |problem: String| root.fault("builtin_tools", 0..0, problem);
        if !builtin::NAMES.contains(&name.as_str()) {
            let fault = fault(format!("there is no built-in tool {name:?}"));
            root.push(fault.help(format!("built: {}", builtin::NAMES.join(", "))));
        } else if name == "transfer" && tools.transfer_to.is_empty() {
            root.push(fault("`transfer` needs `transfer_to`, the places to transfer to".into()));
        } else if name == "search_knowledge" && tools.knowledge.is_none() {
            root.push(fault("`search_knowledge` needs `[knowledge]`, the folder to search".into()));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{error::ConfigErrors, source::SourceFile};

    const BASE: &str = "[llm]\nprovider = \"openai\"\nmodel = \"m\"\n";

    fn parse(text: &str) -> Result<Agent, ConfigErrors> {
        let file = SourceFile::new("agents/a.toml", text);
        Agent::parse("a", &file, |path| Ok(SourceFile::new(path, "Prompt.")))
    }

    fn keys(text: &str) -> Vec<String> {
        let errors = parse(text).unwrap_err();
        let mut keys: Vec<_> = errors.keys().into_iter().map(str::to_owned).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn tools_are_never_called_for_a_turn_that_has_not_ended() {
        let early = "[turn]\npreemptive_generation = true\n";
        assert!(parse(&format!("{BASE}{early}")).is_ok());
        let faults = parse(&format!("builtin_tools = [\"end_call\"]\n{BASE}{early}")).unwrap_err();
        assert_eq!(faults.keys(), ["turn.preemptive_generation"]);
    }

    #[test]
    fn tools_are_read_with_their_schema() {
        let text = "builtin_tools = [\"end_call\"]\n[[tools]]\nname = \"weather\"\n\
                    url = \"https://api.example/{city}\"\nmethod = \"POST\"\n\
                    headers = { authorization = \"Bearer ${TOOL_KEY}\" }\n\
                    [tools.parameters]\ntype = \"object\"\nrequired = [\"city\"]\n\
                    properties.city.type = \"string\"\n";
        let agent = parse(text).unwrap_or_else(|errors| panic!("{}", errors.render(false)));
        let tool = &agent.tools[0];
        assert_eq!(tool.parameters["properties"]["city"]["type"], "string");
        assert!(tool.sends_body && !tool.allow_private);
        assert_eq!(agent.builtin_tools, ["end_call"]);
        let text = "builtin_tools = [\"fly\"]\n[[tools]]\nname = \"a b\"\nuri = 1\n";
        let errors = parse(text).unwrap_err();
        let mut keys = errors.keys();
        keys.sort_unstable();
        assert_eq!(keys, ["builtin_tools", "tools.name", "tools.uri", "tools.url"]);
    }

    #[test]
    fn servers_are_processes_or_addresses() {
        let text = "[[mcp]]\nname = \"files\"\ncommand = \"files-mcp\"\nargs = [\"--ro\"]\n\
                    env = { KEY = \"${TOOL_KEY}\" }\ntools = [\"read\"]\n\
                    [[mcp]]\nname = \"crm\"\nurl = \"https://crm.example/mcp\"\n\
                    headers = { authorization = \"Bearer ${TOOL_CRM}\" }\n\
                    outlive_interruption = [\"book\"]\n";
        let agent = parse(text).unwrap_or_else(|errors| panic!("{}", errors.render(false)));
        let [files, crm] = agent.mcp.as_slice() else { panic!("{:?}", agent.mcp) };
        assert_eq!(
            (files.name.as_str(), files.tools.as_slice()),
            ("files", &["read".to_owned()][..])
        );
        assert!(matches!(&files.reach, McpReach::Process { args, .. } if args == &["--ro"]));
        assert_eq!(crm.reach.values()[0].1, "Bearer ${TOOL_CRM}");
        assert_eq!(crm.outlive_interruption, ["book"]);
    }

    #[test]
    fn what_no_server_is_is_a_fault() {
        for (text, key) in [
            ("name = \"a\"", "mcp.command"),
            ("name = \"a\"\ncommand = \"c\"\nurl = \"https://h/\"", "mcp.command"),
            ("name = \"a\"\nurl = \"ftp://h/\"", "mcp.url"),
            ("name = \"a b\"\ncommand = \"c\"", "mcp.name"),
            ("name = \"a\"\ncommand = \"c\"\nenv = { A = \"${LIVEKIT_API_SECRET}\" }", "mcp.env"),
            ("name = \"a\"\ncommand = \"c\"\n[[mcp]]\nname = \"a\"\ncommand = \"c\"", "mcp.name"),
        ] {
            assert_eq!(keys(&format!("{BASE}[[mcp]]\n{text}\n")), [key], "{text}");
        }
    }

    #[test]
    fn built_ins_come_with_what_they_need() {
        let lists = |names: &str, rest: &str| format!("builtin_tools = [{names}]\n{rest}{BASE}");
        let places = "transfer_to = { sales = \"tel:+15550100\", help = \"sip:h@example.com\" }\n";
        let knowledge = "[knowledge]\nfolder = \"knowledge/shop\"\n";
        let agent = parse(&lists("\"transfer\", \"send_dtmf\"", places)).unwrap();
        let sales = Destination::Address("tel:+15550100".into());
        assert_eq!(agent.transfer_to["sales"], sales);
        let agents = "transfer_to = { a = \"agent:billing\", b = \"agent:b?history=none\" }\n";
        let agent = parse(&lists("\"transfer\"", agents)).unwrap();
        let to =
            |name: &str, keeps_history| Destination::Agent { name: name.into(), keeps_history };
        assert_eq!(agent.transfer_to["a"], to("billing", true));
        assert_eq!(agent.transfer_to["b"], to("b", false));
        assert_eq!(agent.colleagues().collect::<Vec<_>>(), ["billing", "b"]);
        let agent = parse(&lists("\"search_knowledge\"", knowledge)).unwrap();
        assert_eq!(agent.knowledge, Some("knowledge/shop".into()));
        assert_eq!(keys(&lists("\"transfer\", \"search_knowledge\"", "")), ["builtin_tools"; 2]);
        assert_eq!(keys(&lists("", "[knowledge]\n")), ["knowledge.folder"]);
        for wrong in [
            "sales = \"+1555\"",
            "sales = \"tel:\"",
            "\"s s\" = \"tel:1\"",
            "s = \"tel:1 2\"",
            "s = \"agent:../x\"",
        ] {
            assert_eq!(
                keys(&lists("", &format!("transfer_to = {{ {wrong} }}\n"))),
                ["transfer_to"]
            );
        }
    }
}
