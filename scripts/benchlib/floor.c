// SPDX-License-Identifier: BSD-3-Clause
/* The floor: the least that an AoE initiator outside the kernel can do, in C.
 *
 * One packet socket, sendmmsg and recvmmsg, a fixed window, each frame's payload copied once. No retransmission, no
 * locks, no paths, no NBD: a frame that is lost ends the run with status 3.
 *
 *   floor INTERFACE SHELF SLOT read|write sequential|random SECTORS WINDOW SECONDS BYTES
 *
 * SECTORS in a frame; at most WINDOW frames outstanding, and no more than the target's buffer count; BYTES is the range of
 * the disk that is used. Prints one JSON object: seconds, bytes, operations (frames), cpu (seconds of this process), and
 * the round trip's median in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { AOE = 0x88a2, HEADER = 36, LEAST = 60, FRAME_MOST = 9216, MEMORY = 64 << 20, WINDOW_MOST = 4096, SAMPLES = 1 << 20 };
enum { RESPONSE = 8, ERROR = 4, QUERY_CONFIG = 1, READ_EXT = 0x24, WRITE_EXT = 0x34 };

struct aoe {
  uint8_t destination[6], source[6];
  uint16_t type;
  uint8_t flags, error;
  uint16_t shelf;
  uint8_t slot, command;
  uint32_t tag;
  union {
    struct { uint8_t flags, feature, sectors, command, lba[6]; uint16_t reserved; } __attribute__((packed)) ata;
    struct { uint16_t buffers, firmware; uint8_t sectors, version; uint16_t length; } __attribute__((packed)) config;
  };
} __attribute__((packed));

static void die(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t now(void) {  // ns
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double cpu(void) {  // s
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static int open_link(const char *interface, uint8_t mac[6]) {
  int s = socket(AF_PACKET, SOCK_RAW, 0), room = 16 << 20, one = 1;
  if (s < 0) die("socket");
  setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
  setsockopt(s, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
  setsockopt(s, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one);
  setsockopt(s, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one);
  struct sockaddr_ll a = {
      .sll_family = AF_PACKET, .sll_protocol = htons(AOE), .sll_ifindex = if_nametoindex(interface)};
  if (bind(s, (void *)&a, sizeof a)) die(interface);
  struct ifreq request = {0};
  strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
  if (ioctl(s, SIOCGIFHWADDR, &request)) die("SIOCGIFHWADDR");
  memcpy(mac, request.ifr_hwaddr.sa_data, 6);
  return s;
}

/* Ask for the target by broadcast; its MAC goes to `q`, and its buffer count is returned. */
static int find(int s, struct aoe *q) {
  uint8_t in[FRAME_MOST];
  struct aoe *answer = (void *)in;
  struct pollfd p = {s, POLLIN, 0};
  memset(q->destination, 255, 6);
  q->command = QUERY_CONFIG;
  if (send(s, q, LEAST, 0) < 0) die("send");
  do {
    if (poll(&p, 1, 2000) <= 0) {
      fprintf(stderr, "no answer\n");
      exit(3);
    }
    if (recv(s, in, sizeof in, 0) < 0) die("recv");
  } while (!(answer->flags & RESPONSE) || answer->shelf != q->shelf || answer->slot != q->slot);
  memcpy(q->destination, answer->source, 6);
  q->command = 0;
  return ntohs(answer->config.buffers);
}

int main(int count, char **words) {
  if (count != 10) {
    fprintf(stderr, "usage: %s INTERFACE SHELF SLOT read|write sequential|random SECTORS WINDOW SECONDS BYTES\n", *words);
    return 2;
  }
  int writes = !strcmp(words[4], "write"), random = !strcmp(words[5], "random");
  int sectors = atoi(words[6]), window = atoi(words[7]), payload = sectors * 512;
  uint64_t duration = atof(words[8]) * 1e9;
  long places = atol(words[9]) / payload;

  union { struct aoe aoe; uint8_t bytes[LEAST]; } pattern = {0};
  struct aoe *q = &pattern.aoe;
  int s = open_link(words[1], q->source);
  q->type = htons(AOE);
  q->flags = 0x10;
  q->shelf = htons(atoi(words[2]));
  q->slot = atoi(words[3]);
  int buffers = find(s, q);
  if (window > buffers) window = buffers;
  if (window > WINDOW_MOST || window < 1 || places < 1 || payload < 512 || payload > FRAME_MOST - HEADER) return 2;
  memset(&q->ata, 0, sizeof q->ata);
  q->ata.flags = 0x40 | writes;
  q->ata.sectors = sectors;
  q->ata.command = writes ? WRITE_EXT : READ_EXT;

  int length = writes ? HEADER + payload : LEAST;
  uint8_t *memory = malloc(MEMORY), *tx = calloc(window, LEAST), *rx = calloc(window, FRAME_MOST);
  struct iovec *to = calloc(window, 2 * sizeof *to), *from = calloc(window, sizeof *from);
  struct mmsghdr *out = calloc(window, sizeof *out), *in = calloc(window, sizeof *in);
  uint32_t *waits = malloc(SAMPLES * sizeof *waits);
  if (!memory || !tx || !rx || !to || !from || !out || !in || !waits) die("memory");
  memset(memory, 0x5a, MEMORY);
  memset(waits, 0, SAMPLES * sizeof *waits);
  for (int i = 0; i < window; i++) {
    memcpy(tx + i * LEAST, pattern.bytes, LEAST);
    to[2 * i] = (struct iovec){tx + i * LEAST, writes ? HEADER : length};
    to[2 * i + 1] = (struct iovec){memory, payload};
    out[i].msg_hdr.msg_iov = to + 2 * i;
    out[i].msg_hdr.msg_iovlen = 1 + writes;
    from[i] = (struct iovec){rx + i * FRAME_MOST, FRAME_MOST};
    in[i].msg_hdr.msg_iov = from + i;
    in[i].msg_hdr.msg_iovlen = 1;
  }

  // A tag is a place in `sent` (its low 12 bits) under a count of frames; `at` is 0 where nothing is outstanding.
  static struct { uint32_t tag; uint64_t at; } sent[WINDOW_MOST];
  static uint16_t idle[WINDOW_MOST];
  for (int i = 0; i < window; i++) idle[i] = i;
  int free_slots = window;
  uint64_t next = 0, done = 0, start = now(), end = start + duration, t = start;
  double used = cpu();
  unsigned seed = 1;
  size_t chunks = MEMORY / FRAME_MOST;
  while (t < end || free_slots < window) {
    int k = t < end ? free_slots : 0;
    for (int i = 0; i < k; i++, next++) {
      struct aoe *h = (void *)(tx + i * LEAST);
      uint64_t lba = (random ? rand_r(&seed) % places : next % places) * sectors;
      int slot = idle[--free_slots];
      sent[slot].tag = (uint32_t)(next << 12) | slot;
      sent[slot].at = t;
      h->tag = htonl(sent[slot].tag);
      for (int b = 0; b < 6; b++) h->ata.lba[b] = lba >> (8 * b);
      to[2 * i + 1].iov_base = memory + next % chunks * FRAME_MOST;
    }
    for (int n = 0; n < k;) {
      int r = sendmmsg(s, out + n, k - n, 0);
      if (r <= 0) die("sendmmsg");
      n += r;
    }
    struct pollfd p = {s, POLLIN, 0};
    if (poll(&p, 1, 2000) == 0) {
      fprintf(stderr, "%d frames lost\n", window - free_slots);
      return 3;
    }
    int n = recvmmsg(s, in, window, MSG_DONTWAIT, 0);
    t = now();
    for (int i = 0; i < n; i++) {
      struct aoe *h = (void *)(rx + i * FRAME_MOST);
      if (!(h->flags & RESPONSE) || h->command || h->shelf != q->shelf || h->slot != q->slot) continue;
      if (h->flags & ERROR) {
        fprintf(stderr, "the target answers with error %d\n", h->error);
        return 1;
      }
      uint32_t tag = ntohl(h->tag), slot = tag & (WINDOW_MOST - 1);
      if (slot >= (uint32_t)window || !sent[slot].at || sent[slot].tag != tag) continue;
      waits[done++ % SAMPLES] = t - sent[slot].at;
      sent[slot].at = 0;
      idle[free_slots++] = slot;
      if (!writes) memcpy(memory + (tag >> 12) % chunks * FRAME_MOST, (uint8_t *)h + HEADER, payload);
    }
  }
  double seconds = (t - start) / 1e9;
  used = cpu() - used;
  size_t samples = done < SAMPLES ? done : SAMPLES;
  qsort(waits, samples, sizeof *waits, ascending);
  printf("{\"seconds\": %.6f, \"bytes\": %llu, \"operations\": %llu, \"cpu\": %.6f, \"p50_us\": %.2f}\n", seconds,
         (unsigned long long)done * payload, (unsigned long long)done, used, waits[samples / 2] / 1e3);
  return 0;
}
