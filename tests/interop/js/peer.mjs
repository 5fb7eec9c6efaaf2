// A js-libp2p peer for the interop tests, driven by lines of JSON: commands on stdin, answers and events on stdout.
//
//   node peer.mjs '{"listen": ["/ip4/127.0.0.1/tcp/0"], "kadPrefix": "/cocoon/kad/1.0.0"}'
//
// It ends when stdin ends. Not here: any wish of its own; it does what a test says and tells what it sees.

import { createHash } from 'node:crypto'
import readline from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import * as Digest from 'multiformats/hashes/digest'

const ECHO = '/interop/echo/1'
const settings = JSON.parse(process.argv[2] ?? '{}')
const text = (bytes) => new TextDecoder().decode(bytes)
const base64 = (bytes) => Buffer.from(bytes).toString('base64')
const bytesOf = (value) => new Uint8Array(Buffer.from(value, 'base64'))
const say = (message) => process.stdout.write(JSON.stringify(message) + '\n')

// SHA-256 of every signed field and the signature, each with its length: the same function as on our side.
function messageId (message) {
  const digest = createHash('sha256')
  const seqno = new DataView(new ArrayBuffer(8))
  seqno.setBigUint64(0, message.sequenceNumber)
  const parts = [
    message.from.toMultihash().bytes,
    new Uint8Array(seqno.buffer),
    new TextEncoder().encode(message.topic),
    message.data,
    message.signature
  ]
  for (const part of parts) {
    const size = new DataView(new ArrayBuffer(4))
    size.setUint32(0, part.length)
    digest.update(new Uint8Array(size.buffer)).update(part)
  }
  return new Uint8Array(digest.digest())
}

// js provides and finds by CID, of which only the multihash goes over the wire; a key of ours is its digest.
const cidOf = (key) => CID.createV1(raw.code, Digest.decode(bytesOf(key)))

// Values under /cocoontest/ are decimal numbers, and the largest is the newest. As in the test on our side.
const numberOf = (bytes) => {
  const digits = text(bytes)
  if (!/^[0-9]{1,15}$/.test(digits)) throw new Error('not a number')
  return Number(digits)
}
const newest = (numbers) => numbers.indexOf(Math.max(...numbers))

const services = {
  identify: identify(),
  ping: ping(),
  pubsub: gossipsub({
    globalSignaturePolicy: 'StrictSign',
    msgIdFn: messageId,
    allowPublishToZeroTopicPeers: true,
    fallbackToFloodsub: false,
    emitSelf: false,
    ...(settings.gossip ?? {})
  }),
  dht: kadDHT({
    protocol: settings.kadPrefix ?? '/cocoon/kad/1.0.0',
    clientMode: settings.kadClient === true,
    peerInfoMapper: passthroughMapper,
    allowQueryWithZeroPeers: true,
    validators: { cocoontest: async (key, value) => { numberOf(value) } },
    selectors: { cocoontest: (key, values) => newest(values.map(numberOf)) }
  })
}
if (settings.relay === true) {
  services.relay = circuitRelayServer({ reservations: { maxReservations: 8 } })
}

// By its path, because it has its own place: see quic/package.json.
const quic = settings.quic == null ? [] : [(await import(settings.quic)).quic()]

const node = await createLibp2p({
  ...(settings.seed == null ? {} : { privateKey: await generateKeyPairFromSeed('Ed25519', bytesOf(settings.seed)) }),
  addresses: { listen: settings.listen ?? ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp(), webSockets(), circuitRelayTransport(), ...quic],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services
})

// Frames as ours: the length as an unsigned varint, and the bytes. (By hand, because js's own helper, `lpStream`,
// sometimes drops what arrives together with the other side's end.)
function encodeFrame (bytes) {
  const head = []
  let size = bytes.length
  for (; size > 127; size = Math.floor(size / 128)) head.push((size & 127) | 128)
  head.push(size)
  return Buffer.concat([Uint8Array.from(head), bytes])
}

async function * framesOf (stream) {
  let buffer = Buffer.alloc(0)
  for await (const chunk of stream) {
    buffer = Buffer.concat([buffer, chunk.subarray()])
    while (buffer.length > 0) {
      let size = 0
      let head = 0
      do {
        if (head >= buffer.length) { head = 0; break }
        size += (buffer[head] & 127) * 128 ** head
        head += 1
      } while (buffer[head - 1] > 127)
      if (head === 0 || buffer.length < head + size) break
      yield buffer.subarray(head, head + size)
      buffer = buffer.subarray(head + size)
    }
  }
  if (buffer.length > 0) throw new Error('the stream ended inside a frame')
}

async function sendAll (stream, bytes) {
  if (!stream.send(bytes)) await stream.onDrain()
}

// Sends every frame back; after the other side has closed its half, one frame more, and then its own half.
await node.handle(ECHO, async (stream) => {
  try {
    for await (const frame of framesOf(stream)) {
      await sendAll(stream, encodeFrame(frame))
    }
    await sendAll(stream, encodeFrame(new TextEncoder().encode('after your end')))
    await stream.close()
  } catch (error) {
    say({ event: 'echo-error', name: error.name, message: error.message })
  }
}, { runOnLimitedConnection: true, maxInboundStreams: 64 })

// Sends no message by itself, so that its messages go only to who asks for them after an IHAVE.
if (settings.gossipOnly === true) {
  node.services.pubsub.selectPeersToPublish = () => ({ tosend: new Set(), tosendCount: {} })
}

let iwants = 0
const handleIWant = node.services.pubsub.handleIWant.bind(node.services.pubsub)
node.services.pubsub.handleIWant = (peer, wanted) => {
  iwants += wanted.reduce((sum, one) => sum + (one.messageIDs?.length ?? 0), 0)
  return handleIWant(peer, wanted)
}
let ihaveIds = 0
const handleIHave = node.services.pubsub.handleIHave.bind(node.services.pubsub)
node.services.pubsub.handleIHave = (peer, offered) => {
  const answer = handleIHave(peer, offered)
  ihaveIds += answer.reduce((sum, one) => sum + (one.messageIDs?.length ?? 0), 0)
  return answer
}
node.services.pubsub.addEventListener('gossipsub:message', ({ detail }) => {
  say({
    event: 'message',
    topic: detail.msg.topic,
    data: base64(detail.msg.data),
    source: detail.msg.from.toString(),
    forwarder: detail.propagationSource.toString(),
    id: detail.msgId
  })
})

const openEcho = (to) =>
  node.dialProtocol(to.startsWith('/') ? multiaddr(to) : peerIdFromString(to), ECHO, { runOnLimitedConnection: true })

const commands = {
  dial: async ({ address }) => {
    const connection = await node.dial(multiaddr(address))
    return { peer: connection.remotePeer.toString(), limited: connection.limits != null }
  },
  ping: async ({ peer }) => ({ ms: await node.services.ping.ping(peerIdFromString(peer)) }),
  known: async ({ peer }) => {
    const known = await node.peerStore.get(peerIdFromString(peer))
    return {
      protocols: known.protocols,
      addresses: known.addresses.map(({ multiaddr }) => multiaddr.toString()),
      certified: known.addresses.some(({ isCertified }) => isCertified),
      agent: known.metadata.has('AgentVersion') ? text(known.metadata.get('AgentVersion')) : null
    }
  },
  echo: async ({ to, frames }) => {
    const stream = await openEcho(to)
    const received = framesOf(stream)
    const answers = []
    for (const frame of frames) {
      await sendAll(stream, encodeFrame(bytesOf(frame)))
      answers.push(base64((await received.next()).value))
    }
    const rest = (async () => {
      for await (const frame of received) answers.push(base64(frame))
    })()
    await stream.close()
    await rest
    return { frames: answers }
  },
  subscribe: async ({ topic }) => { node.services.pubsub.subscribe(topic) },
  subscribers: async ({ topic }) => ({
    peers: node.services.pubsub.getSubscribers(topic).map(String),
    mesh: node.services.pubsub.getMeshPeers(topic)
  }),
  publish: async ({ topic, data }) => {
    const result = await node.services.pubsub.publish(topic, bytesOf(data))
    return { recipients: result.recipients.map(String) }
  },
  gossip: async () => ({ wantedFromUs: iwants, weWanted: ihaveIds }),
  provide: async ({ key }) => {
    let told = 0
    for await (const event of node.services.dht.provide(cidOf(key))) {
      if (event.name === 'PEER_RESPONSE' && event.messageName === 'ADD_PROVIDER') told += 1
    }
    return { told }
  },
  findProviders: async ({ key }) => {
    const found = {}
    for await (const event of node.services.dht.findProviders(cidOf(key))) {
      for (const provider of event.name === 'PROVIDER' ? event.providers : []) {
        found[provider.id.toString()] = provider.multiaddrs.map(String)
      }
    }
    return { providers: found }
  },
  findPeer: async ({ peer }) => {
    for await (const event of node.services.dht.findPeer(peerIdFromString(peer))) {
      if (event.name === 'FINAL_PEER') return { addresses: event.peer.multiaddrs.map(String) }
    }
    return { addresses: [] }
  },
  put: async ({ key, value }) => {
    for await (const event of node.services.dht.put(new TextEncoder().encode(key), bytesOf(value))) void event
  },
  get: async ({ key }) => {
    for await (const event of node.services.dht.get(new TextEncoder().encode(key))) {
      if (event.name === 'VALUE') return { value: base64(event.value) }
    }
    return { value: null }
  },
  addresses: async () => ({ addresses: node.getMultiaddrs().map(String) }),
  connections: async () => ({
    connections: node.getConnections().map((connection) => ({
      peer: connection.remotePeer.toString(),
      address: connection.remoteAddr.toString(),
      limited: connection.limits != null
    }))
  })
}

say({ event: 'ready', peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })

const lines = readline.createInterface({ input: process.stdin })
lines.on('line', async (line) => {
  const { id, command, ...given } = JSON.parse(line)
  try {
    say({ id, answer: (await commands[command](given)) ?? {} })
  } catch (error) {
    say({ id, error: `${error.name}: ${error.message}` })
  }
})
lines.on('close', async () => {
  await node.stop()
  process.exit(0)
})
