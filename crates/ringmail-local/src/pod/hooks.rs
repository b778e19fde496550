//! Lifecycle hooks, and the orderly end of one container.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt as _;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::probe::{self, Action};
use crate::machine::{Exit, Running};
use crate::manifest::check::named_port;
use crate::sandbox::ExecSpec;

/// Runs a hook; the error says what was wrong with it.
pub(super) async fn run_hook(
    hook: &LifecycleHandler,
    container: &Container,
    running: &Arc<dyn Running>,
    env: &[(String, String)],
    pod: Option<IpAddr>,
    limit: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds).min(limit)).await;
        return Ok(());
    }
    if let Some(exec) = &hook.exec {
        return run_program(running, exec.command.clone().unwrap_or_default(), env, limit).await;
    }
    if let Some(get) = &hook.http_get {
        let port = match &get.port {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => named_port(container, name).and_then(|p| u16::try_from(p).ok()),
        };
        let port = port.ok_or_else(|| "its port is not known".to_owned())?;
        let pod = pod.ok_or_else(|| "the pod has no address".to_owned())?;
        return probe::check_network(&probe::http_action(get, port), pod, limit).await;
    }
    Err("it has no action".to_owned())
}

/// Does what a probe asks.
pub(super) async fn check(
    action: &Action,
    running: &Arc<dyn Running>,
    env: &[(String, String)],
    pod: Option<IpAddr>,
    timeout: Duration,
) -> Result<(), String> {
    match (action, pod) {
        (Action::Exec(command), _) => run_program(running, command.clone(), env, timeout).await,
        (_, Some(pod)) => probe::check_network(action, pod, timeout).await,
        (_, None) => Err("the pod has no address".to_owned()),
    }
}

/// Ends a container as its spec wants it: the hook, `SIGTERM`, and after `grace` at the latest `SIGKILL`.
pub(super) async fn stop(
    container: &Container,
    running: &Arc<dyn Running>,
    env: &[(String, String)],
    pod: Option<IpAddr>,
    grace: Duration,
) -> Exit {
    let begin = Instant::now();
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && !grace.is_zero()
    {
        let limited = tokio::time::timeout(grace, run_hook(hook, container, running, env, pod, grace));
        tokio::select! {
            exit = running.exited() => return exit,
            result = limited => match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(container = container.name, %error, "preStop hook"),
                Err(_) => tracing::info!(container = container.name, "preStop hook used up the grace period"),
            },
        }
    }
    running.signal(stop_signal(container));
    let left = grace.saturating_sub(begin.elapsed()).max(Duration::from_millis(if grace.is_zero() {
        0
    } else {
        500
    }));
    if let Ok(exit) = tokio::time::timeout(left, running.exited()).await {
        return exit;
    }
    running.kill();
    running.exited().await
}

async fn run_program(
    running: &Arc<dyn Running>,
    command: Vec<String>,
    env: &[(String, String)],
    limit: Duration,
) -> Result<(), String> {
    let shown = command.join(" ");
    let spec = ExecSpec { argv: command, env: env.to_vec(), cwd: None };
    let mut handle = running.exec(spec, None).await.map_err(|error| error.to_string())?;
    drop(handle.stdin.take());
    let mut output = Vec::new();
    let mut errors = handle.stderr.take();
    let work = async {
        // What it says is for the message only: a bounded part of each stream, the rest is drained unseen.
        let mut stdout = handle.stdout.take(4096);
        let out = async {
            let _ = stdout.read_to_end(&mut output).await;
            let _ = tokio::io::copy(stdout.get_mut(), &mut tokio::io::sink()).await;
        };
        let err = async {
            let mut text = Vec::new();
            if let Some(stderr) = errors.as_mut() {
                let mut limited = stderr.take(4096);
                let _ = limited.read_to_end(&mut text).await;
                let _ = tokio::io::copy(limited.get_mut(), &mut tokio::io::sink()).await;
            }
            text
        };
        let exit = &mut handle.exit;
        let ((), mut text, exit) = futures::future::join3(out, err, exit.map(|exit| exit)).await;
        text.extend_from_slice(&output);
        (exit, String::from_utf8_lossy(&text).trim().to_owned())
    };
    match tokio::time::timeout(limit, work).await {
        Ok((exit, _)) if exit.code == 0 => Ok(()),
        Ok((exit, text)) => {
            let text = text.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
            Err(format!("`{shown}` ended with {}{text}", exit.code))
        }
        Err(_) => {
            (handle.kill)();
            Err(format!("`{shown}` did not end within {} s", limit.as_secs()))
        }
    }
}

/// `SIGTERM`, or what the container's spec says.
fn stop_signal(container: &Container) -> i32 {
    let name = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    name.and_then(|name| name.parse::<nix::sys::signal::Signal>().ok()).map_or(15, |signal| signal as i32)
}
