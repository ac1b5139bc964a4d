//! Machines on one network: a network namespace for each, and one for the switch between them.
//! Nothing of it is visible outside, and it goes when it is dropped.

use std::process::{Command, Output};

/// The first three bytes of all addresses. No other machine is on this network.
const NETWORK: &str = "10.77.0";
/// The namespace of the switch, which is a machine itself.
const SWITCH: &str = "switch";

/// The machines.
#[derive(Debug)]
pub(crate) struct Lan {
    prefix: String,
    machines: Vec<&'static str>,
}

impl Lan {
    /// Connects `machines`, which have the addresses from 1 on; says why if that is not permitted
    /// here.
    pub(crate) fn build(machines: &[&'static str]) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root may make network namespaces".to_owned());
        }
        let prefix = format!("tow-{}", std::process::id());
        // From here on dropping it removes whatever was made.
        let lan = Self { prefix, machines: [machines, &[SWITCH]].concat() };
        lan.add(SWITCH)?;
        let switch = lan.namespace(SWITCH);
        ip(&format!("-n {switch} link add bridge type bridge"))?;
        ip(&format!("-n {switch} address add {NETWORK}.254/24 dev bridge"))?;
        ip(&format!("-n {switch} link set bridge up"))?;
        for (machine, number) in machines.iter().zip(1..) {
            lan.add(machine)?;
            let own = lan.namespace(machine);
            ip(&format!("-n {switch} link add {machine} type veth peer name eth0 netns {own}"))?;
            ip(&format!("-n {switch} link set {machine} master bridge up"))?;
            ip(&format!("-n {own} address add {NETWORK}.{number}/24 dev eth0"))?;
            ip(&format!("-n {own} link set eth0 up"))?;
        }
        Ok(lan)
    }

    /// The address of machine `number`, counted from 1.
    pub(crate) fn address(number: usize) -> String {
        format!("{NETWORK}.{number}")
    }

    /// A command that runs on `machine`. The process that it starts is the program itself.
    pub(crate) fn on(&self, machine: &str, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(machine)]).arg(program);
        command
    }

    /// A command that runs on a machine of no other use.
    pub(crate) fn elsewhere(&self, program: &std::path::Path) -> Command {
        self.on(SWITCH, program)
    }

    /// Pulls the plug of `machine`.
    pub(crate) fn cut(&self, machine: &str) {
        self.plug(machine, "down");
    }

    /// Puts the plug of `machine` back in.
    pub(crate) fn join(&self, machine: &str) {
        self.plug(machine, "up");
    }

    fn plug(&self, machine: &str, way: &str) {
        ip(&format!("-n {} link set {machine} {way}", self.namespace(SWITCH))).expect("a link");
    }

    fn namespace(&self, machine: &str) -> String {
        format!("{}-{machine}", self.prefix)
    }

    fn add(&self, machine: &str) -> Result<(), String> {
        let namespace = self.namespace(machine);
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("-n {namespace} link set lo up"))
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // With a namespace its links go. What was never made cannot be removed, and need not.
        for machine in &self.machines {
            drop(ip(&format!("netns delete {}", self.namespace(machine))));
        }
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let ran = Command::new("ip").args(arguments.split(' ')).output();
    match ran {
        Ok(Output { status, .. }) if status.success() => Ok(()),
        Ok(Output { stderr, .. }) => {
            Err(format!("`ip {arguments}`: {}", String::from_utf8_lossy(&stderr).trim()))
        }
        Err(error) => Err(format!("`ip` cannot be run: {error}")),
    }
}
