//! The init container's command: sets the rules and proves them.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use clap::{ArgAction, Args};
use ipnet::IpNet;

use crate::error::RedirectError;
use crate::plan::{Plan, parse_ports};
use crate::ruleset::PortRange;
use crate::validate::{Proof, validate};

/// Which connections of this pod go to the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct InitArgs {
    /// Port of the proxy that takes connections to the pod
    #[arg(long, value_name = "PORT", default_value_t = crate::INBOUND_PORT)]
    pub incoming_proxy_port: u16,
    /// Port of the proxy that takes connections from the pod
    #[arg(long, value_name = "PORT", default_value_t = crate::OUTBOUND_PORT)]
    pub outgoing_proxy_port: u16,
    /// The proxy's uid: its own connections are left alone
    #[arg(long, value_name = "UID")]
    pub proxy_uid: Option<u32>,
    /// The proxy's socket mark, decimal or 0x…: its own connections are left alone
    #[arg(long, value_name = "MARK", value_parser = parse_mark)]
    pub proxy_mark: Option<u32>,
    /// Ports of the pod that are reached directly: a comma list with ranges
    #[arg(long, value_name = "PORTS", default_value = "4190,4191")]
    pub inbound_ports_to_ignore: Ports,
    /// Ports elsewhere that are reached directly: a comma list with ranges
    #[arg(long, value_name = "PORTS", default_value = "")]
    pub outbound_ports_to_ignore: Ports,
    /// Networks whose clients reach the pod directly
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub subnets_to_ignore: Vec<IpNet>,
    /// Networks that the pod reaches directly
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub outbound_subnets_to_ignore: Vec<IpNet>,
    /// Whether IPv6 goes to the proxy as well
    #[arg(
        long, value_name = "BOOL", default_value_t = true, default_missing_value = "true", num_args = 0..=1,
        require_equals = true, action = ArgAction::Set
    )]
    pub ipv6: bool,
    /// Print the rules in `nft` syntax and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not prove with a connection that the rules hold
    #[arg(long)]
    pub no_validate: bool,
}

impl InitArgs {
    /// The plan that these arguments describe.
    pub fn plan(&self) -> Plan {
        Plan {
            inbound_port: self.incoming_proxy_port,
            outbound_port: self.outgoing_proxy_port,
            exempt_uid: self.proxy_uid,
            exempt_mark: self.proxy_mark,
            skip_inbound: self.inbound_ports_to_ignore.0.clone(),
            skip_outbound: self.outbound_ports_to_ignore.0.clone(),
            skip_sources: self.subnets_to_ignore.clone(),
            skip_destinations: self.outbound_subnets_to_ignore.clone(),
            ipv6: self.ipv6,
        }
    }
}

/// A comma list of ports and ranges, as given on a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(pub Vec<PortRange>);

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_ports(text).map(Self)
    }
}

/// Sets the rules in this process's network namespace and proves them; what was done is printed to `out`.
///
/// With `--dry-run` only the script is printed, which `nft -f -` would take and which does the same.
pub fn run(args: &InitArgs, out: &mut dyn Write) -> Result<(), RedirectError> {
    let plan = args.plan();
    plan.check()?;
    let mut text = String::new();
    if args.dry_run {
        // The first two lines make it a replacement: `delete` alone would fail where there is no table.
        let name = crate::TABLE;
        let _infallible = write!(text, "table inet {name}\ndelete table inet {name}\n{}", plan.to_nft());
    } else {
        plan.apply()?;
        let rules: usize = plan.table().chains.iter().map(|chain| chain.rules.len()).sum();
        let _infallible = writeln!(text, "{rules} rules are in place in table `inet {}`", crate::TABLE);
        if !args.no_validate {
            let proven = validate(&plan, PATIENCE)?;
            for (family, outcome) in [("IPv4", proven.ipv4), ("IPv6", proven.ipv6)] {
                let _infallible = match outcome {
                    Ok(Proof { target, proxy }) => {
                        writeln!(text, "{family}: a connection to {target} lands in the proxy at {proxy}")
                    }
                    Err(absence) => writeln!(text, "{family}: {absence}"),
                };
            }
        }
    }
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(RedirectError::Output)
}

fn parse_mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("`{text}` is no mark: a number of 32 bits, decimal or 0x…"))
}

/// A redirected connection arrives at once; this only bounds how long a wrong one is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: InitArgs,
    }

    fn parse(line: &str) -> Result<InitArgs, String> {
        let words = std::iter::once("init").chain(line.split_whitespace());
        Program::try_parse_from(words).map(|program| program.args).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_become_a_plan() {
        let line = "--proxy-mark 0x2102 --inbound-ports-to-ignore 4190,4191,5000-5010 --outbound-ports-to-ignore 25 \
                    --subnets-to-ignore 10.0.0.0/8,fd00::/8 --outbound-subnets-to-ignore 192.168.0.0/16 --ipv6=false";
        let plan = parse(line).expect("valid").plan();
        assert_eq!(plan.exempt_mark, Some(crate::PROXY_MARK));
        assert_eq!(plan.skip_inbound, parse_ports("4190,4191,5000-5010").expect("valid"));
        assert_eq!((plan.skip_sources.len(), plan.skip_destinations.len(), plan.ipv6), (2, 1, false));
        assert!(parse("--proxy-uid 2102 --ipv6").expect("valid").plan().ipv6);
        let default = Plan { skip_inbound: parse_ports("4190,4191").expect("valid"), ..Plan::default() };
        let parsed = parse("--proxy-uid 2102").expect("valid").plan();
        assert_eq!(parsed, Plan { exempt_uid: Some(2102), ..default });
    }

    #[test]
    fn bad_arguments_name_the_option_and_the_item() {
        for (line, words) in [
            ("--proxy-mark 0xzz", "--proxy-mark"),
            ("--inbound-ports-to-ignore 1,x", "`x` is neither a port"),
            ("--subnets-to-ignore 10.0.0.0/40", "--subnets-to-ignore"),
            ("--proxy-uid x", "--proxy-uid"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_dry_run_prints_a_script_and_needs_no_permission() {
        let args = parse("--proxy-uid 2102 --dry-run").expect("valid");
        let mut out = Vec::new();
        run(&args, &mut out).expect("prints");
        let text = String::from_utf8(out).expect("text");
        assert!(
            text.starts_with("table inet ringmail\ndelete table inet ringmail\ntable inet ringmail {\n"),
            "{text}"
        );
        let loops = InitArgs { proxy_uid: None, ..args };
        assert_eq!(run(&loops, &mut Vec::new()).expect_err("refused").code(), "RM1300");
    }
}
