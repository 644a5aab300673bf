//! Functions in this process as a target: the engine alone, without NATS or a node.

use std::sync::Arc;

use bytes::Bytes;
use nex_runtime::engine::Function;
use nex_runtime::invocation::{InvokeError, Reply, ReplySink, Trigger};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::load::{Answer, Ask, Target};

/// Subject of the triggers.
const SUBJECT: &str = "bench";

/// Asks one or several loaded functions.
#[derive(Debug)]
pub struct EngineTarget {
    asker: EngineAsk,
    answers: UnboundedReceiver<Answer>,
}

/// The sending half of an [`EngineTarget`].
#[derive(Debug, Clone)]
pub struct EngineAsk {
    functions: Arc<[Arc<dyn Function>]>,
    sender: UnboundedSender<Answer>,
}

impl EngineTarget {
    /// Asks these functions.
    pub fn new(functions: impl IntoIterator<Item = Arc<dyn Function>>) -> Self {
        let (sender, answers) = unbounded_channel();
        Self {
            asker: EngineAsk {
                functions: functions.into_iter().collect(),
                sender,
            },
            answers,
        }
    }

    /// The functions.
    #[must_use]
    pub fn functions(&self) -> &[Arc<dyn Function>] {
        &self.asker.functions
    }
}

impl Target for EngineTarget {
    type Ask = EngineAsk;

    fn asker(&self) -> EngineAsk {
        self.asker.clone()
    }

    async fn answer(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }
}

impl Ask for EngineAsk {
    async fn ask(&self, to: usize, key: u64, payload: Bytes) -> Result<(), String> {
        let function = self.functions.get(to).ok_or("no such function")?;
        let trigger = Trigger {
            subject: SUBJECT.to_owned(),
            payload,
            ..Trigger::default()
        };
        let sink = Sink {
            key,
            sender: self.sender.clone(),
            answered: false,
        };
        function.invoke(trigger, Box::new(sink));
        Ok(())
    }
}

/// Takes the first reply of a call for its answer.
struct Sink {
    key: u64,
    sender: UnboundedSender<Answer>,
    answered: bool,
}

impl Sink {
    fn answer(&mut self, outcome: Result<Reply, InvokeError>) {
        let outcome = outcome
            .map(|reply| reply.body)
            .map_err(|error| format!("{error} ({})", error.kind));
        // A measurement that has been given up needs no answer.
        _ = self.sender.send(Answer { key: self.key, outcome });
    }
}

impl ReplySink for Sink {
    fn stream(&mut self, reply: Reply) {
        if !std::mem::replace(&mut self.answered, true) {
            self.answer(Ok(reply));
        }
    }

    fn finish(mut self: Box<Self>, outcome: Result<Reply, InvokeError>) {
        if !self.answered {
            self.answer(outcome);
        }
    }
}
