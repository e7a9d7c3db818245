//! Changes of the graph in mid-run: a filter more or less with requests under way, a new overlay on top, another backing
//! file of the same content. The guest's disk stays the same.

use super::crash;
use super::run::{Run, Verdict};
use super::stack::{Blockdev, Filter, Format, Layer, Layout, Placed, file_name};
use super::start::{FILES, SECTORS};
use blockgraph::filter::delay::Delay;
use blockgraph::filter::throttle::Throttle;
use blockgraph::graph::edit::{Edit, NewFilter};
use blockgraph::graph::{Body, Common, DiscardPolicy, Role};
use blockgraph::request::{Prealloc, Request};
use blockgraph::{Kind, NodeId, Span};
use ring::{FileId, Mem};
use std::sync::Arc;
use tests::cells::SECTOR;

/// More layers than a run begins with, though not many.
const LAYERS_MAX: usize = 6;

/// One change, by chance.
pub fn one(run: &mut Run<'_>) -> Verdict {
    // A new image on a failing disk is one more thing that fails; those are looked at by themselves.
    let any = if run.plan.may_fail() { 2 } else { 4 };
    match run.rng.below(any) {
        0 => insert(run),
        1 => remove(run),
        2 => undisturbed(run, snapshot),
        _ => undisturbed(run, swap),
    }
}

/// With nothing under way, and nothing held back: nobody would let it go while the control thread waits for it.
fn undisturbed(run: &mut Run<'_>, edit: fn(&mut Run<'_>) -> Verdict) -> Verdict {
    run.settle()?;
    run.let_go_of_all();
    edit(run)?;
    run.hold_some();
    Ok(())
}

fn number(run: &mut Run<'_>) -> usize {
    run.counts.edits += 1;
    run.counts.edits
}

fn say(run: &Run<'_>, what: &str) {
    if run.tells {
        println!("edit: {what}");
    }
}

fn find_top(run: &mut Run<'_>) {
    run.world.top = run.world.node(&run.world.stack.top().top());
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A filter above some layer, or above what is above it.
fn insert(run: &mut Run<'_>) -> Verdict {
    let number = number(run);
    let layers = run.world.stack.layers.len() as u64;
    let layer = run.rng.below(layers) as usize;
    let place = run
        .rng
        .below(run.world.stack.layers[layer].filters.len() as u64 + 1) as usize;
    let filter = match run.rng.coin() {
        true => Filter::Delay(run.rng.below(3) * 1000),
        false => Filter::Throttle,
    };
    say(run, &format!("insert {filter:?} at {place} above {layer}"));
    let body: Body = match filter {
        Filter::Delay(ns) => Body::Filter(Arc::new(Delay::new(ns))),
        _ => {
            let graph = run.world.current.get();
            let group = graph.throttle_groups().get("group").map_err(text)?;
            Body::Filter(Arc::new(Throttle::new(group)))
        }
    };
    let of = &mut run.world.stack.layers[layer];
    let below = match place {
        0 => of.name.clone(),
        n => of.filters[n - 1].name.clone(),
    };
    let placed = Placed::edited(number.to_string(), filter);
    let name = placed.name.clone();
    of.filters.insert(place, placed);
    let below = run.world.node(&below);
    let mut edit = Edit::begin(&run.world.current);
    let common = Common {
        discard: DiscardPolicy::Unmap,
        ..Common::default()
    };
    let new = NewFilter {
        name,
        kind: "filter",
        common,
        body,
    };
    edit.insert_above(below, new).map_err(text)?;
    let (_, leaving) = edit.commit().map_err(text)?;
    run.leaving.push(leaving);
    find_top(run);
    Ok(())
}

/// Some filter, if there is one.
fn remove(run: &mut Run<'_>) -> Verdict {
    let layers = run.world.stack.layers.iter().enumerate();
    let all = layers.flat_map(|(n, layer)| (0..layer.filters.len()).map(move |place| (n, place)));
    let all: Vec<(usize, usize)> = all.collect();
    if all.is_empty() {
        return Ok(());
    }
    let (layer, place) = all[run.rng.below(all.len() as u64) as usize];
    remove_one(run, layer, place)
}

fn remove_one(run: &mut Run<'_>, layer: usize, place: usize) -> Verdict {
    number(run);
    let placed = run.world.stack.layers[layer].filters.remove(place);
    say(run, &format!("remove {placed:?} above {layer}"));
    let mut edit = Edit::begin(&run.world.current);
    let filter = run.world.node(&placed.name);
    edit.remove_filter(filter).map_err(text)?;
    let (_, leaving) = edit.commit().map_err(text)?;
    run.leaving.push(leaving);
    find_top(run);
    Ok(())
}

/// The next file that nobody has, and a name for a layer in it.
fn spare(run: &Run<'_>) -> Option<(FileId, String)> {
    let images = run.world.disk.images();
    let file = (0..FILES)
        .map(FileId)
        .find(|file| images[file].is_empty())?;
    Some((file, format!("new{}", file.0)))
}

/// A new overlay takes the guest's writes from here on.
fn snapshot(run: &mut Run<'_>) -> Verdict {
    let Some((file, name)) = spare(run) else {
        return Ok(());
    };
    if run.world.stack.layers.len() >= LAYERS_MAX {
        return Ok(());
    }
    run.settle()?;
    // What writes by itself has no place in the middle of a chain that is read only.
    let top = run.world.stack.layers.len() - 1;
    let writes =
        |placed: &Placed| matches!(placed.filter, Filter::CopyOnRead(_) | Filter::Compress);
    while let Some(place) = run.world.stack.top().filters.iter().position(writes) {
        remove_one(run, top, place)?;
    }
    run.settle()?;
    number(run);
    let mut layout = Layout::by_chance(&mut run.rng);
    layout.data_file = false;
    let layer = layer(name, Format::Qcow2(layout), file, SECTORS);
    say(run, &format!("snapshot: {layer:?}"));
    let span = Span::new(0, 0).ok_or("a span")?;
    let flushed = crash::ask(&mut run.world, Kind::Flush, span, &Mem::none());
    flushed.map_err(text)?;
    let below = run.world.stack.top().clone();
    run.world.create(&layer, Some(&below))?;
    for node in layer.blockdevs(Some(&below.top()), true) {
        run.world.blockdev(&node)?;
    }
    run.world.stack.layers.push(layer);
    run.cells.covered();
    find_top(run);
    Ok(())
}

fn layer(name: String, format: Format, file: FileId, sectors: u64) -> Layer {
    Layer {
        name,
        format,
        file,
        data: None,
        sectors,
        file_filters: Vec::new(),
        filters: Vec::new(),
        options: String::new(),
    }
}

/// All below some overlay becomes one raw file that reads the same.
fn swap(run: &mut Run<'_>) -> Verdict {
    let stack = &run.world.stack;
    let bounded = |placed: &Placed| matches!(placed.filter, Filter::CopyOnRead(Some(_)));
    let has_bound = stack.layers.iter().any(|l| l.filters.iter().any(bounded));
    let (Some((file, name)), false) = (spare(run), has_bound || stack.layers.len() < 2) else {
        return Ok(());
    };
    run.settle()?;
    number(run);
    let overlays = run.world.stack.layers.len() as u64 - 1;
    let kept = 1 + run.rng.below(overlays) as usize;
    say(run, &format!("swap all below {kept} for {file:?}"));
    let below = run.world.stack.layers[kept - 1].clone();
    let new = layer(name, Format::Raw, file, below.sectors);
    copy(run, &below.top(), file, below.sectors)?;
    let opened: Vec<Blockdev> = new.blockdevs(None, false);
    let mut id = NodeId(0);
    for node in &opened {
        id = run.world.blockdev(node)?;
    }
    let overlay = run.world.node(&run.world.stack.layers[kept].name);
    let old: Vec<Layer> = run.world.stack.layers.drain(..kept).collect();
    let mut edit = Edit::begin(&run.world.current);
    edit.replace_child(overlay, Role::Cow, id).map_err(text)?;
    remove_layers(&mut edit, &old)?;
    run.world.stack.layers.insert(0, new);
    let (_, leaving) = edit.commit().map_err(text)?;
    run.world.let_go(leaving)?;
    run.bases
        .insert(file, run.world.disk.images()[&file].clone());
    find_top(run);
    Ok(())
}

/// Takes layers out that nobody is above any more.
pub fn remove_layers(edit: &mut Edit, layers: &[Layer]) -> Verdict {
    // Filters that an edit put there belong to whoever did it; the rest was asked for by name.
    let filters = layers.iter().flat_map(|layer| &layer.filters);
    for placed in filters.filter(|placed| placed.is_edit()) {
        let filter = edit.graph().find(&placed.name).ok_or("a filter is lost")?;
        edit.remove_filter(filter).map_err(text)?;
    }
    for layer in layers.iter().rev() {
        for node in layer.blockdevs(None, false).iter().rev() {
            if !node.name.starts_with("edit-") {
                edit.remove(&node.name).map_err(text)?;
            }
        }
    }
    Ok(())
}

/// Copies what a node reads as into a file.
fn copy(run: &mut Run<'_>, from: &str, file: FileId, sectors: u64) -> Verdict {
    let (from, to) = (run.world.node(from), run.world.node(&file_name(file)));
    let len = sectors * SECTOR;
    let graph = run.world.current.get();
    let copied = run.world.control.run(&graph, to, move |io| async move {
        let mem = Mem::zeroed(len as usize).ok_or(ring::Errno::NOMEM)?;
        io.read(from, 0, &mem).await?;
        io.truncate(to, len, Prealloc::Off).await?;
        io.write(to, 0, &mem).await?;
        let span = Span { at: 0, len: 0 };
        io.request(to, Request::plain(Kind::Flush, span)).await
    });
    copied.map_err(text)?.map_err(text)
}
