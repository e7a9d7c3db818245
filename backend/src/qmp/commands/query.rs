//! Commands that tell of nodes and of what was asked of them.

use super::{Command, NOTHING, command, done};
use crate::cli::Object;
use crate::qapi::Type;
use crate::qapi::tables::EMPTY;
use crate::qapi::tables::queries::{
    BLOCK_DEVICE_INFO, BLOCK_INFO, BLOCK_LATENCY_HISTOGRAM_SET_ARG, BLOCK_STATS,
    QUERY_BLOCKSTATS_ARG, QUERY_NAMED_BLOCK_NODES_ARG, X_DBG_BLOCK_GRAPH,
};
use crate::qmp::show::{block_graph, drains, node_info, stats};
use crate::qmp::{Context, ErrorClass, QmpError};
use crate::stats::HistogramOptions;
use blockgraph::report::Layers;
use serde_json::{Value, json};

pub(super) static COMMANDS: &[Command] = &[
    command(
        "query-named-block-nodes",
        &QUERY_NAMED_BLOCK_NODES_ARG,
        Type::Array(&Type::Object(&BLOCK_DEVICE_INFO)),
        query_named_block_nodes,
    ),
    // Devices, of which this process has none: guests have them.
    command(
        "query-block",
        &EMPTY,
        Type::Array(&Type::Object(&BLOCK_INFO)),
        |_, _| Ok(json!([])),
    ),
    command(
        "query-blockstats",
        &QUERY_BLOCKSTATS_ARG,
        Type::Array(&Type::Object(&BLOCK_STATS)),
        query_blockstats,
    ),
    command(
        "block-latency-histogram-set",
        &BLOCK_LATENCY_HISTOGRAM_SET_ARG,
        NOTHING,
        block_latency_histogram_set,
    ),
    Command {
        features: &["unstable"],
        ..command(
            "x-debug-query-block-graph",
            &EMPTY,
            Type::Object(&X_DBG_BLOCK_GRAPH),
            x_debug_query_block_graph,
        )
    },
];

fn query_named_block_nodes(
    context: &mut Context<'_>,
    mut arguments: Object,
) -> Result<Value, QmpError> {
    let layers = match arguments.boolean("flat")? {
        Some(true) => Layers::Own,
        Some(false) | None => Layers::All,
    };
    let nodes = context.daemon.node_reports(layers);
    let nodes = nodes.map_err(|error| QmpError::new(error.to_string()))?;
    Ok(Value::Array(nodes.iter().map(node_info).collect()))
}

fn x_debug_query_block_graph(context: &mut Context<'_>, _: Object) -> Result<Value, QmpError> {
    let mut graph = block_graph(&context.daemon.graph());
    graph["x-drains"] = drains(&context.daemon.drain_figures());
    Ok(graph)
}

fn query_blockstats(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let (graph, exports) = (context.daemon.graph(), context.daemon.export_counts());
    Ok(match arguments.boolean("query-nodes")? {
        Some(true) => stats::by_node(&graph, &exports),
        Some(false) | None => stats::by_export(&graph, &exports),
    })
}

fn block_latency_histogram_set(
    context: &mut Context<'_>,
    mut arguments: Object,
) -> Result<Value, QmpError> {
    let id = arguments.required_string("id")?;
    let options = HistogramOptions {
        all: arguments.uint64s("boundaries")?,
        read: arguments.uint64s("boundaries-read")?,
        write: arguments.uint64s("boundaries-write")?,
        zone_append: arguments.uint64s("boundaries-zap")?,
        flush: arguments.uint64s("boundaries-flush")?,
    };
    let mut exports = context.daemon.export_counts().into_iter();
    let export = exports.find(|export| export.id == id).ok_or_else(|| {
        let desc = format!("Device '{id}' not found");
        QmpError::of_class(ErrorClass::DeviceNotFound, desc)
    })?;
    let set = export.stats.set_histograms(&options);
    set.map_err(|error| QmpError::new(format!("Device '{id}' {error}")))?;
    done()
}
