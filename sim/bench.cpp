// The workload of `python -m sim bench` as a plain C++ event loop: what this machine can do at most.
//
// A random mesh (every node dials D/2 others), pair latencies U(10, 100) ms, a flood each 100 ms, one heartbeat per
// node and second. argv: calendar|heap, nodes, messages. One line of JSON on stdout.
//   calendar: a ring of buckets of 100 µs, a vector each     heap: std::priority_queue, exact times
#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <queue>
#include <vector>

using std::vector;

static uint64_t words[2] = {1234567, 89101112};

static uint64_t draw() {  // xorshift128+
    uint64_t a = words[0], b = words[1];
    words[0] = b;
    a ^= a << 23;
    words[1] = a ^ b ^ (a >> 17) ^ (b >> 26);
    return words[1] + b;
}

static const uint32_t DEGREE = 8, RING = 16384, HEARTBEAT = 10000, EVERY = 1000, NOBODY = ~0u, TICK = ~0u;

struct Event {
    uint32_t node, from, message;
};

struct Timed {
    uint32_t at;
    Event event;
    bool operator<(const Timed& other) const { return at > other.at; }
};

struct World {
    vector<uint32_t> start, peer, delay;
    vector<uint64_t> seen;
    uint32_t nodes, words_per_node;
    uint64_t events = 0, first = 0;

    World(uint32_t count, uint32_t messages) : start(count + 1, 0), nodes(count), words_per_node((messages + 63) / 64) {
        vector<std::pair<uint32_t, uint32_t>> edges;
        for (uint32_t i = 0; i < count; i++)
            for (uint32_t k = 0; k < DEGREE / 2; k++) {
                uint32_t j = draw() % count;
                edges.push_back({i, j == i ? (i + 1) % count : j});
            }
        for (auto& edge : edges) start[edge.first + 1]++, start[edge.second + 1]++;
        for (uint32_t i = 0; i < count; i++) start[i + 1] += start[i];
        peer.resize(start[count]);
        delay.resize(start[count]);
        vector<uint32_t> at(start.begin(), start.end() - 1);
        for (auto& edge : edges) {
            uint32_t ticks = 100 + draw() % 900;
            peer[at[edge.first]] = edge.second, delay[at[edge.first]++] = ticks;
            peer[at[edge.second]] = edge.first, delay[at[edge.second]++] = ticks;
        }
        seen.assign((size_t)count * words_per_node, 0);
    }

    template <class Push>
    void happen(const Event& event, uint32_t now, Push push) {
        events++;
        if (event.message == TICK) {
            push(now + HEARTBEAT, event);
            return;
        }
        uint64_t& word = seen[(size_t)event.node * words_per_node + event.message / 64];
        uint64_t bit = 1ULL << (event.message & 63);
        if (word & bit) return;
        word |= bit;
        first++;
        for (uint32_t k = start[event.node]; k < start[event.node + 1]; k++)
            if (peer[k] != event.from) push(now + delay[k], Event{peer[k], event.node, event.message});
    }
};

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const bool is_calendar = !strcmp(argv[1], "calendar");
    const uint32_t nodes = atoi(argv[2]), messages = atoi(argv[3]), end = messages * EVERY + 20000;
    World world(nodes, messages);
    clock_t began = clock();
    if (is_calendar) {
        vector<vector<Event>> buckets(RING);
        auto push = [&](uint32_t at, const Event& event) { buckets[at % RING].push_back(event); };
        for (uint32_t i = 0; i < nodes; i++) push(draw() % HEARTBEAT, Event{i, NOBODY, TICK});
        for (uint32_t now = 0; now < end; now++) {
            if (now % EVERY == 0 && now / EVERY < messages) push(now, Event{(uint32_t)(draw() % nodes), NOBODY, now / EVERY});
            vector<Event>& bucket = buckets[now % RING];
            for (size_t i = 0; i < bucket.size(); i++) world.happen(Event(bucket[i]), now, push);
            bucket.clear();
        }
    } else {
        std::priority_queue<Timed> heap;
        auto push = [&](uint32_t at, const Event& event) { heap.push(Timed{at, event}); };
        for (uint32_t i = 0; i < nodes; i++) push(draw() % HEARTBEAT, Event{i, NOBODY, TICK});
        for (uint32_t m = 0; m < messages; m++) push(m * EVERY, Event{(uint32_t)(draw() % nodes), NOBODY, m});
        while (!heap.empty() && heap.top().at < end) {
            Timed next = heap.top();
            heap.pop();
            world.happen(next.event, next.at, push);
        }
    }
    double seconds = double(clock() - began) / CLOCKS_PER_SEC;
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"events\": %llu, \"first\": %llu, \"cpu_s\": %.6f, \"rss_mb\": %ld}\n", (unsigned long long)world.events,
           (unsigned long long)world.first, seconds, usage.ru_maxrss / 1024);
}
