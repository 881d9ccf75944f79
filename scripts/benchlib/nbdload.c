// SPDX-License-Identifier: BSD-3-Clause
/* A light NBD client that keeps a number of requests under way on each of several Unix sockets, so that the server is measured
 * and not its client: one thread, no copy of what it reads (it stays where recv has put it), simple replies only.
 *
 *   nbdload read|write sequential|random REQUEST DEPTH SECONDS BYTES SOCKET[#EXPORT]...
 *
 * REQUEST is the size of each in bytes; BYTES is the range of the disk that is used, 0 for all of it. Prints one JSON object:
 * seconds, bytes, operations, cpu (seconds of this process), and latency in microseconds: mean_us, p50_us, p99_us, p999_us.
 * The clock starts when every connection has answered DEPTH requests, which are not counted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH_MOST = 256, CHUNK = 1 << 20, SAMPLES = 4 << 20, SOCKETS_MOST = 1024, TENTH = 100 };
enum { OPT_GO = 7, REP_ACK = 1, REP_INFO = 3, CMD_READ = 0, CMD_WRITE = 1, CMD_DISC = 2 };
static const uint64_t HELLO = 0x49484156454f5054, REPLY_OPT = 0x3e889045565a9;
static const uint32_t REQUEST = 0x25609513, SIMPLE = 0x67446698;

struct request { uint32_t magic; uint16_t flags, type; uint64_t cookie, offset; uint32_t length; } __attribute__((packed));
struct reply { uint32_t magic, error; uint64_t cookie; } __attribute__((packed));

struct connection {
  int fd;
  uint64_t next, places, sent[DEPTH_MOST];
  struct reply reply;
  size_t have, skip;  // bytes of the next reply's header that are here; of a payload that are not
  int under_way;
};

static int writes, at_random, depth;
static size_t size;
static uint8_t *payload, *chunk;
static uint32_t *waits;  // tenths of a microsecond
static uint64_t done, t, end, total_wait;
static unsigned seed = 1;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void refuse(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static uint64_t now(void) {  // ns
  struct timespec when;
  clock_gettime(CLOCK_MONOTONIC, &when);
  return when.tv_sec * 1000000000ull + when.tv_nsec;
}

static double cpu(void) {  // s
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void get(int fd, void *to, size_t length) {
  if (recv(fd, to, length, MSG_WAITALL) != (ssize_t)length) die("the server hung up");
}

static void put(int fd, struct iovec *v, int count) {
  while (count) {
    ssize_t n = writev(fd, v, count);
    if (n <= 0) die("write");
    for (; count && (size_t)n >= v->iov_len; v++, count--) n -= v->iov_len;
    if (count) {
      v->iov_base = (uint8_t *)v->iov_base + n;
      v->iov_len -= n;
    }
  }
}

/* The newstyle handshake, for an export ("" is the default one). Returns its size. */
static uint64_t negotiate(int fd, const char *export) {
  struct { uint64_t magic, hello; uint16_t flags; } __attribute__((packed)) greeting;
  get(fd, &greeting, sizeof greeting);
  if (be64toh(greeting.hello) != HELLO) refuse("not an NBD server of the new style");
  uint32_t named = strlen(export);
  struct { uint32_t flags; uint64_t hello; uint32_t option, length, name; } __attribute__((packed)) go = {
      htonl(3), htobe64(HELLO), htonl(OPT_GO), htonl(6 + named), htonl(named)};
  uint16_t infos = 0;
  struct iovec asked[] = {{&go, sizeof go}, {(char *)export, named}, {&infos, sizeof infos}};
  put(fd, asked, 3);
  uint64_t bytes = 0;
  for (;;) {
    struct { uint64_t magic; uint32_t option, type, length; } __attribute__((packed)) answer;
    uint8_t data[4096];
    get(fd, &answer, sizeof answer);
    uint32_t type = ntohl(answer.type), length = ntohl(answer.length);
    if (be64toh(answer.magic) != REPLY_OPT || length > sizeof data) refuse("the handshake went wrong");
    if (length) get(fd, data, length);
    if (type == REP_ACK) return bytes;
    if (type & 0x80000000) refuse("the server refuses this export");
    if (type == REP_INFO && length >= 12 && !data[0] && !data[1]) memcpy(&bytes, data + 2, 8), bytes = be64toh(bytes);
  }
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

/* Send `count` requests under the given cookies. */
static void ask(struct connection *c, const uint16_t *cookies, int count) {
  struct request requests[DEPTH_MOST];
  struct iovec v[2 * DEPTH_MOST];
  int n = 0;
  for (int i = 0; i < count; i++) {
    uint64_t place = (at_random ? (uint64_t)rand_r(&seed) : c->next++) % c->places;
    requests[i] = (struct request){htonl(REQUEST),       0, htons(writes ? CMD_WRITE : CMD_READ), cookies[i],
                                   htobe64(place * size), htonl(size)};
    c->sent[cookies[i]] = t;
    if (writes) {
      v[n++] = (struct iovec){requests + i, sizeof *requests};
      v[n++] = (struct iovec){payload, size};
    }
  }
  if (!writes) v[n++] = (struct iovec){requests, count * sizeof *requests};
  put(c->fd, v, n);
  c->under_way += count;
}

/* Take in what has come, and ask for as much again. */
static void take(struct connection *c) {
  uint16_t cookies[DEPTH_MOST];
  int freed = 0;
  ssize_t n = recv(c->fd, chunk, CHUNK, 0);
  if (n <= 0) die("the server hung up");
  t = now();
  for (uint8_t *p = chunk, *stop = chunk + n; p < stop;) {
    size_t here = stop - p;
    if (c->skip) {
      size_t k = here < c->skip ? here : c->skip;
      c->skip -= k;
      p += k;
    } else {
      size_t k = sizeof c->reply - c->have;
      if (k > here) k = here;
      memcpy((uint8_t *)&c->reply + c->have, p, k);
      c->have += k;
      p += k;
      if (c->have < sizeof c->reply) break;
      c->have = 0;
      if (ntohl(c->reply.magic) != SIMPLE || c->reply.cookie >= (uint64_t)depth) refuse("not a simple reply of ours");
      if (c->reply.error) refuse("a request failed");
      c->skip = writes ? 0 : size;
    }
    if (!c->skip) {
      uint64_t wait = t - c->sent[c->reply.cookie];
      waits[done++ % SAMPLES] = wait / TENTH;
      total_wait += wait;
      c->under_way--;
      cookies[freed++] = c->reply.cookie;
    }
  }
  if (freed && t < end) ask(c, cookies, freed);
}

/* Go on until `end`, and until all that is under way then has been answered. */
static void finish(struct connection *all, struct pollfd *polled, int sockets) {
  if (sockets == 1) {
    while (all[0].under_way) take(all);
    return;
  }
  for (int busy = sockets; busy;) {
    if (poll(polled, sockets, -1) < 0) die("poll");
    busy = 0;
    for (int i = 0; i < sockets; i++) {
      if (polled[i].revents) take(all + i);
      busy += all[i].under_way > 0;
    }
  }
}

int main(int count, char **words) {
  int sockets = count - 7;
  if (sockets < 1 || sockets > SOCKETS_MOST) {
    fprintf(stderr, "usage: %s read|write sequential|random REQUEST DEPTH SECONDS BYTES SOCKET[#EXPORT]...\n", *words);
    return 2;
  }
  writes = !strcmp(words[1], "write");
  at_random = !strcmp(words[2], "random");
  size = atol(words[3]);
  depth = atoi(words[4]);
  uint64_t duration = atof(words[5]) * 1e9, range = atoll(words[6]);
  if (depth < 1 || depth > DEPTH_MOST || !size || size > 32 << 20) return 2;
  payload = malloc(size);
  chunk = malloc(CHUNK);
  waits = malloc(SAMPLES * sizeof *waits);
  struct connection *all = calloc(sockets, sizeof *all);
  struct pollfd *polled = calloc(sockets, sizeof *polled);
  if (!payload || !chunk || !waits || !all || !polled) die("memory");
  memset(payload, 0x5a, size);
  memset(chunk, 0, CHUNK);
  memset(waits, 0, SAMPLES * sizeof *waits);
  for (int i = 0; i < sockets; i++) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    char *export = strchr(words[7 + i], '#');
    if (export) *export++ = 0;
    strncpy(name.sun_path, words[7 + i], sizeof name.sun_path - 1);
    all[i].fd = polled[i].fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(all[i].fd, (void *)&name, sizeof name)) die(words[7 + i]);
    uint64_t bytes = negotiate(all[i].fd, export ? export : "");
    all[i].places = (range && range < bytes ? range : bytes) / size;
    if (!all[i].places) refuse("the disk is smaller than one request");
    polled[i].events = POLLIN;
  }

  uint16_t cookies[DEPTH_MOST];
  for (int i = 0; i < depth; i++) cookies[i] = i;
  t = now();
  for (int i = 0; i < sockets; i++) ask(all + i, cookies, depth);
  finish(all, polled, sockets);  // a server makes its threads when a connection's first requests come
  done = total_wait = 0;
  double used = cpu();
  uint64_t start = t = now();
  end = start + duration;
  for (int i = 0; i < sockets; i++) ask(all + i, cookies, depth);
  finish(all, polled, sockets);
  double seconds = (t - start) / 1e9;
  used = cpu() - used;
  size_t samples = done < SAMPLES ? done : SAMPLES;
  qsort(waits, samples, sizeof *waits, ascending);
#define AT(p) (waits[(size_t)(p * (samples - 1))] / 10.0)
  printf("{\"seconds\": %.6f, \"bytes\": %llu, \"operations\": %llu, \"cpu\": %.6f, \"mean_us\": %.2f, \"p50_us\": %.2f, "
         "\"p99_us\": %.2f, \"p999_us\": %.2f}\n",
         seconds, (unsigned long long)done * size, (unsigned long long)done, used, total_wait / 1e3 / done, AT(0.5),
         AT(0.99), AT(0.999));
  for (int i = 0; i < sockets; i++) {
    struct request bye = {.magic = htonl(REQUEST), .type = htons(CMD_DISC)};
    if (write(all[i].fd, &bye, sizeof bye) < 0) return 0;  // it has hung up by itself
  }
  return 0;
}
