//! Frames from an agent, taken for hostile: an id the node never issued, or a frame out of turn, ends the agent.

use std::sync::Arc;

use nex_agent::link::{AgentToNode, FunctionId, LinkError, LinkReader};
use nex_runtime::engine::EngineEvent;
use nex_runtime::logs::{LogLine, MAX_LOG_LINE, printable};

use super::agent::Agent;
use super::error::Fault;
use super::host_calls;
use super::pool::Pool;

/// Reads an agent's frames until its link ends, and then ends the agent.
pub(super) async fn read(pool: Arc<Pool>, agent: Arc<Agent>, mut reader: LinkReader<AgentToNode>) {
    let fault = loop {
        match reader.next().await {
            Ok(Some(message)) => {
                agent.mark_heard();
                if let Err(fault) = handle(&pool, &agent, message) {
                    break fault;
                }
            }
            // Inside a frame or between two, that is how a dying agent's link ends.
            Ok(None) | Err(LinkError::Truncated) => break Fault::LinkClosed,
            Err(error) => break Fault::Link(error),
        }
    };
    pool.fail(&agent, fault);
}

fn handle(pool: &Arc<Pool>, agent: &Arc<Agent>, message: AgentToNode) -> Result<(), Fault> {
    match message {
        AgentToNode::Reply { call, reply } => agent.finish(call, Ok(reply)),
        AgentToNode::ReplyError { call, error } => agent.finish(call, Err(error)),
        AgentToNode::Stream { call, reply } => agent.stream(call, reply),
        AgentToNode::HostCall {
            call,
            function,
            request,
        } => host_calls::start(&pool.runtime, agent, function, call, request),
        AgentToNode::HostCancel { call } => {
            agent.host_calls.cancel(call);
            Ok(())
        }
        AgentToNode::Log { function, line } => log(agent, function, line),
        AgentToNode::Event { function, event } => self::event(pool, agent, function, event),
        AgentToNode::Pong { health, .. } => {
            agent.pong(health);
            if health.condemned {
                pool.condemn(agent, None, "it says that some of its code does not stop");
            }
            Ok(())
        }
        AgentToNode::DeployResult { function, result } => agent.deploy_result(function, result),
        AgentToNode::Hello(_) => Err(Fault::Violation("second hello")),
    }
}

fn log(agent: &Agent, function: FunctionId, mut line: LogLine) -> Result<(), Fault> {
    let Some((slot, refused)) = agent.admit_log(function, line.text.chars().count())? else {
        return Ok(());
    };
    if let Some(refused) = refused {
        slot.host.logs.log(refused);
    }
    // The engine cuts lines, marks the cut and writes out control characters; this is for an agent that does not.
    if line.text.len() > MAX_LOG_LINE
        && let Some((end, _)) = line.text.char_indices().nth(MAX_LOG_LINE + CUT_MARK)
    {
        line.text.truncate(end);
    }
    line.text = printable(line.text);
    slot.host.logs.log(line);
    Ok(())
}

/// Characters an engine may take to mark a cut line.
const CUT_MARK: usize = 64;

fn event(pool: &Arc<Pool>, agent: &Arc<Agent>, function: FunctionId, event: EngineEvent) -> Result<(), Fault> {
    let condemned = match &event {
        EngineEvent::LimitHit(_) => None,
        // Before anybody hears of it: whoever undeploys the function then does not clear it of what it did.
        EngineEvent::Condemned { message } => Some((agent.convict(function)?, message.clone())),
        _ => return Err(Fault::Violation("event that is not an agent's to report")),
    };
    if let Some(slot) = agent.admit_event(function)? {
        slot.host.events.event(event);
    }
    // After that, so that what follows from it is not reported before it.
    if let Some((offender, message)) = condemned {
        pool.condemn(agent, offender, &message);
    }
    Ok(())
}
