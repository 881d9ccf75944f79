// SPDX-License-Identifier: BSD-3-Clause
//
// relay CONTROL A B: a cable between interfaces A and B, for AoE frames, that harms them as it is told.
//
// The one idea: without faults a frame goes from the receive ring of one interface straight into a batch for the other, so
// that the cable neither loses anything by itself nor costs much; only delayed frames are copied, into a heap by due time.
// What befalls a frame is drawn from one seeded sequence a direction. Everything can be changed while frames pass, by
// commands on the Unix socket CONTROL (SOCK_SEQPACKET, one command and one answer a packet):
//
//     line to|from|both loss=P dup=P dupdelay=US reorder=P hold=US delay=US jitter=US corrupt=P mtu=BYTES cut=0|1
//     rule to|from read|write|flush|identify|config|any lba=N skip=N times=N delay=US|drop=1
//     clear        no faults, no rules, what is delayed goes out now
//     seed N
//     stats        name=count ...
//
// "to" is from A to B (requests, with the initiator at A), "from" is back. P is 0 to 1, US microseconds. mtu counts the
// whole frame. A rule is for the frames that match, after the first `skip` of them, `times` of them (0: all).

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { AOE = 0x88a2, SLOT = 1 << 14, SLOTS = 2048, BATCH = 128, RULES = 64, CLIENTS = 8, HEAP = 1 << 15 };
enum { TO, FROM };
#define PACKET_IGNORE_OUTGOING_ 23
#define SO_SNDBUFFORCE_ 32

struct port {
    const char *name;
    int fd;
    uint8_t *ring;
    unsigned next;
};

struct line {
    double loss, dup, dupdelay, reorder, hold, delay, jitter, corrupt, mtu, cut;
    uint64_t random;
    uint64_t passed, lost, duped, reordered, corrupted, toolong, cutoff, ruled, failed, full, ringfull;
};

struct rule {
    int way;
    char op[12];
    double lba, skip, times, delay, drop;
    uint64_t seen, matched;
};

struct held {
    uint64_t due, serial;
    int way;
    unsigned length;
    uint8_t *data;
};

static struct port ports[2];
static struct line lines[2];
static struct rule rules[RULES];
static int nrules;
static struct held heap[HEAP];
static unsigned nheld;
static uint64_t serial, seed = 1;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double chance(struct line *l) { // splitmix64
    uint64_t z = l->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}

static void reseed(void) {
    lines[TO].random = seed * 2;
    lines[FROM].random = seed * 2 + 1;
}

// -- delayed frames ---------------------------------------------------------------------------------------------------

static int sooner(const struct held *a, const struct held *b) {
    return a->due != b->due ? a->due < b->due : a->serial < b->serial;
}

static void put_off(int way, const uint8_t *data, unsigned length, uint64_t due) {
    if (nheld == HEAP) {
        lines[way].full++;
        return;
    }
    struct held h = {due, serial++, way, length, malloc(length)};
    if (!h.data)
        die("malloc");
    memcpy(h.data, data, length);
    unsigned i = nheld++;
    for (; i && sooner(&h, &heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = h;
}

static struct held take(void) {
    struct held top = heap[0], last = heap[--nheld];
    unsigned i = 0;
    for (unsigned c; (c = 2 * i + 1) < nheld; i = c) {
        if (c + 1 < nheld && sooner(&heap[c + 1], &heap[c]))
            c++;
        if (!sooner(&heap[c], &last))
            break;
        heap[i] = heap[c];
    }
    heap[i] = last;
    return top;
}

// -- sending ----------------------------------------------------------------------------------------------------------

struct batch {
    struct mmsghdr msgs[2 * BATCH]; // twice, for duplicates
    struct iovec iov[2 * BATCH];
    unsigned n;
};

static void add(struct batch *b, const uint8_t *data, unsigned length) {
    b->iov[b->n] = (struct iovec){(void *)data, length};
    b->msgs[b->n] = (struct mmsghdr){.msg_hdr = {.msg_iov = &b->iov[b->n], .msg_iovlen = 1}};
    b->n++;
}

static void flush(struct batch *b, int way) {
    for (unsigned done = 0; done < b->n;) {
        int sent = sendmmsg(ports[!way].fd, b->msgs + done, b->n - done, 0);
        if (sent > 0) {
            done += (unsigned)sent;
            lines[way].passed += (unsigned)sent;
        } else if (errno != EINTR) { // the interface is down, or its MTU too small
            done++;
            lines[way].failed++;
        }
    }
    b->n = 0;
}

static void send_due(uint64_t now) {
    static struct batch b;
    uint8_t *spent[BATCH];
    while (nheld && heap[0].due <= now) {
        int way = heap[0].way;
        unsigned n = 0;
        while (n < BATCH && nheld && heap[0].due <= now && heap[0].way == way) {
            struct held h = take();
            add(&b, spent[n++] = h.data, h.length);
        }
        flush(&b, way);
        while (n)
            free(spent[--n]);
    }
}

// -- what befalls a frame ---------------------------------------------------------------------------------------------

static int is(const struct rule *r, const uint8_t *f, unsigned length) {
    if (!strcmp(r->op, "any"))
        return 1;
    if (!strcmp(r->op, "config"))
        return f[19] == 1;
    if (f[19] != 0 || length < 36)
        return 0;
    uint64_t lba = 0;
    for (int i = 5; i >= 0; i--)
        lba = lba << 8 | f[28 + i];
    if (!(f[24] & 0x40))
        lba &= 0x0fffffff;
    if (r->lba >= 0 && (uint64_t)r->lba != lba)
        return 0;
    if (f[14] & 8) // a response: its opcode has become a status, but the write flag is still there
        return !strcmp(r->op, f[24] & 1 ? "write" : "read");
    switch (f[27]) {
    case 0x20: case 0x24: return !strcmp(r->op, "read");
    case 0x30: case 0x34: case 0x3d: return !strcmp(r->op, "write");
    case 0xe7: case 0xea: return !strcmp(r->op, "flush");
    case 0xec: return !strcmp(r->op, "identify");
    }
    return 0;
}

static const struct rule *rule_for(int way, const uint8_t *f, unsigned length) {
    for (struct rule *r = rules; r < rules + nrules; r++) {
        if (r->way != way || !is(r, f, length))
            continue;
        if ((double)r->seen++ < r->skip || (r->times && (double)r->matched >= r->times))
            continue;
        r->matched++;
        return r;
    }
    return NULL;
}

static void pass(int way, uint8_t *data, unsigned length, uint64_t now, struct batch *b) {
    struct line *l = &lines[way];
    if (length < 24)
        return;
    const struct rule *r = rule_for(way, data, length);
    if (r && r->drop) {
        l->ruled++;
        return;
    }
    if (l->cut) {
        l->cutoff++;
        return;
    }
    if (l->mtu && length > l->mtu) {
        l->toolong++;
        return;
    }
    if (l->loss && chance(l) < l->loss) {
        l->lost++;
        return;
    }
    if (l->corrupt && length > 100 && chance(l) < l->corrupt) {
        l->corrupted++;
        data[100] ^= 0x10;
    }
    double us = l->delay;
    if (r) {
        l->ruled++;
        us += r->delay;
    }
    if (l->jitter)
        us += chance(l) * l->jitter;
    if (l->reorder && chance(l) < l->reorder) {
        l->reordered++;
        us += l->hold;
    }
    if (us > 0)
        put_off(way, data, length, now + (uint64_t)(us * 1000));
    else
        add(b, data, length);
    if (l->dup && chance(l) < l->dup) {
        l->duped++;
        if (us + l->dupdelay > 0)
            put_off(way, data, length, now + (uint64_t)((us + l->dupdelay) * 1000));
        else
            add(b, data, length);
    }
}

static struct tpacket2_hdr *slot(struct port *p, unsigned i) {
    return (struct tpacket2_hdr *)(p->ring + (size_t)(i % SLOTS) * SLOT);
}

static int forward(int way) {
    static struct batch b;
    struct port *p = &ports[way];
    unsigned n = 0;
    uint64_t now = now_ns();
    for (; n < BATCH; n++) {
        struct tpacket2_hdr *h = slot(p, p->next + n);
        if (!(__atomic_load_n(&h->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            break;
        if (h->tp_snaplen == h->tp_len)
            pass(way, (uint8_t *)h + h->tp_mac, h->tp_len, now, &b);
        else
            lines[way].full++;
    }
    flush(&b, way);
    for (unsigned i = 0; i < n; i++)
        __atomic_store_n(&slot(p, p->next + i)->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    p->next = (p->next + n) % SLOTS;
    return n == BATCH;
}

// -- commands ---------------------------------------------------------------------------------------------------------

struct key {
    const char *name;
    double *value;
};

static const char *set(const struct key *keys, char *words) {
    for (char *save, *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *value = strchr(word, '=');
        const struct key *k = keys;
        if (!value)
            return "error: NAME=VALUE is wanted";
        *value++ = 0;
        while (k->name && strcmp(k->name, word))
            k++;
        if (!k->name)
            return "error: no such name";
        *k->value = atof(value);
    }
    return "ok";
}

static const char *command_line(const char *which, const char *words) {
    const char *answer = "error: to, from or both";
    for (int way = TO; way <= FROM; way++) {
        struct line *l = &lines[way];
        char copy[1024];
        const struct key keys[] = {{"loss", &l->loss},     {"dup", &l->dup},     {"dupdelay", &l->dupdelay},
                                   {"reorder", &l->reorder}, {"hold", &l->hold},   {"delay", &l->delay},
                                   {"jitter", &l->jitter}, {"mtu", &l->mtu},     {"cut", &l->cut},
                                   {"corrupt", &l->corrupt}, {NULL, NULL}};
        if (strcmp(which, "both") && strcmp(which, way == TO ? "to" : "from"))
            continue;
        snprintf(copy, sizeof copy, "%s", words);
        answer = set(keys, copy);
    }
    return answer;
}

static const char *command_rule(const char *which, const char *words) {
    if (nrules == RULES)
        return "error: too many rules";
    struct rule *r = &rules[nrules];
    *r = (struct rule){.way = strcmp(which, "to") ? FROM : TO, .lba = -1};
    int at = 0;
    if (sscanf(words, "%11s %n", r->op, &at) != 1)
        return "error: an operation is wanted";
    char copy[1024];
    snprintf(copy, sizeof copy, "%s", words + at);
    const struct key keys[] = {{"lba", &r->lba},     {"skip", &r->skip}, {"times", &r->times},
                               {"delay", &r->delay}, {"drop", &r->drop}, {NULL, NULL}};
    const char *answer = set(keys, copy);
    if (!strcmp(answer, "ok"))
        nrules++;
    return answer;
}

static void command_stats(char *out, size_t room) {
    size_t n = 0;
    for (int way = TO; way <= FROM; way++) {
        struct line *l = &lines[way];
        struct tpacket_stats s;
        socklen_t size = sizeof s;
        if (!getsockopt(ports[way].fd, SOL_PACKET, PACKET_STATISTICS, &s, &size))
            l->ringfull += s.tp_drops;
        const char *w = way == TO ? "to" : "from";
        n += (size_t)snprintf(out + n, room - n,
                              "%s.passed=%lu %s.lost=%lu %s.duped=%lu %s.reordered=%lu %s.corrupted=%lu %s.toolong=%lu "
                              "%s.cut=%lu %s.ruled=%lu %s.failed=%lu %s.full=%lu %s.ringfull=%lu ",
                              w, l->passed, w, l->lost, w, l->duped, w, l->reordered, w, l->corrupted, w, l->toolong, w,
                              l->cutoff, w, l->ruled, w, l->failed, w, l->full, w, l->ringfull);
    }
    for (int i = 0; i < nrules; i++)
        n += (size_t)snprintf(out + n, room - n, "rule%d=%lu ", i, rules[i].matched);
    snprintf(out + n, room - n, "held=%u", nheld);
}

static void command(int fd, char *text) {
    static char out[8192];
    char verb[12] = "", which[12] = "";
    const char *answer = "error: unknown command";
    int at = 0;
    sscanf(text, "%11s %n", verb, &at);
    char *rest = text + at;
    if (!strcmp(verb, "stats")) {
        command_stats(out, sizeof out);
        answer = out;
    } else if (!strcmp(verb, "seed")) {
        seed = strtoull(rest, NULL, 10);
        reseed();
        answer = "ok";
    } else if (!strcmp(verb, "clear")) {
        nrules = 0;
        for (int way = TO; way <= FROM; way++) {
            struct line *l = &lines[way];
            l->loss = l->dup = l->dupdelay = l->reorder = l->hold = l->delay = l->jitter = l->corrupt = l->mtu = l->cut = 0;
        }
        send_due(UINT64_MAX);
        answer = "ok";
    } else if (!strcmp(verb, "line") || !strcmp(verb, "rule")) {
        at = 0;
        sscanf(rest, "%11s %n", which, &at);
        answer = !strcmp(verb, "line") ? command_line(which, rest + at) : command_rule(which, rest + at);
    }
    if (send(fd, answer, strlen(answer), MSG_NOSIGNAL) < 0)
        perror("answer");
}

// -- life -------------------------------------------------------------------------------------------------------------

static void open_port(struct port *p, const char *name) {
    int one = 1, version = TPACKET_V2, buffer = 16 << 20;
    struct tpacket_req req = {.tp_block_size = 1 << 18, .tp_frame_size = SLOT};
    req.tp_frame_nr = SLOTS;
    req.tp_block_nr = SLOTS / (req.tp_block_size / SLOT);
    p->name = name;
    p->fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (p->fd < 0)
        die("socket");
    if (setsockopt(p->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING_, &one, sizeof one) ||
        setsockopt(p->fd, SOL_SOCKET, SO_SNDBUFFORCE_, &buffer, sizeof buffer) ||
        setsockopt(p->fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) ||
        setsockopt(p->fd, SOL_PACKET, PACKET_RX_RING, &req, sizeof req))
        die("setsockopt");
    p->ring = mmap(NULL, (size_t)SLOTS * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
    if (p->ring == MAP_FAILED)
        die("mmap");
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(AOE), .sll_ifindex = (int)if_nametoindex(name)};
    struct packet_mreq promiscuous = {.mr_ifindex = at.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    if (!at.sll_ifindex || bind(p->fd, (struct sockaddr *)&at, sizeof at) ||
        setsockopt(p->fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof promiscuous))
        die(name);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: relay CONTROL A B\n");
        return 1;
    }
    prctl(PR_SET_TIMERSLACK, 1000UL); // 1 us: delays are part of what is measured
    open_port(&ports[0], argv[2]);
    open_port(&ports[1], argv[3]);
    reseed();
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    snprintf(path.sun_path, sizeof path.sun_path, "%s", argv[1]);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&path, sizeof path) || listen(listener, CLIENTS))
        die(argv[1]);
    struct pollfd polls[3 + CLIENTS];
    for (int i = 0; i < 3 + CLIENTS; i++)
        polls[i] = (struct pollfd){-1, POLLIN, 0};
    polls[0].fd = ports[0].fd;
    polls[1].fd = ports[1].fd;
    polls[2].fd = listener;
    puts("relay: ready");
    fflush(stdout);
    for (;;) {
        struct timespec wait = {1, 0};
        uint64_t now = now_ns();
        if (nheld) {
            uint64_t ns = heap[0].due > now ? heap[0].due - now : 0;
            if (ns < 1000000000u)
                wait = (struct timespec){0, (long)ns};
        }
        if (ppoll(polls, 3 + CLIENTS, &wait, NULL) < 0 && errno != EINTR)
            die("ppoll");
        send_due(now_ns());
        for (int way = TO; way <= FROM; way++) {
            if (polls[way].revents & POLLERR) { // ENETDOWN; it is over when the interface is up again
                int code;
                socklen_t size = sizeof code;
                getsockopt(polls[way].fd, SOL_SOCKET, SO_ERROR, &code, &size);
            }
            forward(way);
        }
        if (polls[2].revents & POLLIN)
            for (int i = 3; i < 3 + CLIENTS; i++)
                if (polls[i].fd < 0) {
                    polls[i].fd = accept(listener, NULL, NULL);
                    break;
                }
        for (int i = 3; i < 3 + CLIENTS; i++) {
            char text[1024];
            if (polls[i].fd < 0 || !(polls[i].revents & (POLLIN | POLLHUP)))
                continue;
            ssize_t n = recv(polls[i].fd, text, sizeof text - 1, 0);
            if (n <= 0) {
                close(polls[i].fd);
                polls[i].fd = -1;
                continue;
            }
            text[n] = 0;
            command(polls[i].fd, text);
        }
    }
}
