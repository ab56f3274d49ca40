/** Bytes of a zlib stream in base64. */
async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function decodeImages(uris) {
  const images = uris.map((uri) => Object.assign(new Image(), { src: uri }));
  await Promise.all(images.map((image) => image.decode()));
  return images;
}

/** A case as it is in the file, its frames, level maps and token orders decoded. */
async function decodeCase(view) {
  const frames = {};
  for (const [label, uris] of Object.entries(view.video.frames)) frames[label] = await decodeImages(uris);
  const reads = {};
  for (const [label, read] of Object.entries(view.reads)) {
    const codes = await inflate(read.maps.codes);
    const order = read.layout?.order ? new Int32Array((await inflate(read.layout.order)).buffer) : null;
    reads[label] = { ...read, codes, tokenAt: order, positionOf: order && inverse(order) };
  }
  return { ...view, frames, reads };
}

function inverse(order) {
  const places = new Int32Array(order.length);
  order.forEach((token, position) => { places[token] = position; });
  return places;
}
