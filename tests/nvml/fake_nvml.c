/* A libnvidia-ml.so.1 for machines without a GPU: the real Python binding loads it and can't tell.
 *
 * It plays what a script says, and reads the script anew at each call, so a test changes the world while the program
 * under test runs. The environment names two files:
 *
 *   FAKE_NVML_SCRIPT  a line each, in any order; replace the file by a rename, so that no call sees half of it
 *       init STATE
 *       gpu INDEX STATE TOTAL_MIB USED_MIB UTILISATION_PERCENT POWER_MILLIWATTS TEMPERATURE_CELSIUS
 *   FAKE_NVML_CALLS   optional: each call is appended to it as "FUNCTION INDEX" (INDEX -1: of no GPU)
 *
 * STATE is 0 (well), an NVML error number (9: driver not loaded, 15: GPU is lost, ...), or -1: the call hangs, until
 * the script says otherwise. A figure of -1 is not supported by that GPU. The number of gpu lines, counted at
 * nvmlInit, is the number of GPUs; their indices go from 0 up.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HANG = -1, OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, MAX_GPUS = 64 };
typedef struct { int index; } *device_t;
struct gpu { int state; long total_mib, used_mib, utilisation, power, temperature; };
struct world { int init_state, count; struct gpu gpus[MAX_GPUS]; };

static struct { int index; } devices[MAX_GPUS];

static void read_script(struct world *world) {
    char line[256];
    memset(world, 0, sizeof *world);
    const char *path = getenv("FAKE_NVML_SCRIPT");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        struct gpu g;
        int index;
        if (sscanf(line, "init %d", &world->init_state) == 1) continue;
        if (sscanf(line, "gpu %d %d %ld %ld %ld %ld %ld", &index, &g.state, &g.total_mib, &g.used_mib,
                   &g.utilisation, &g.power, &g.temperature) == 7 && index >= 0 && index < MAX_GPUS) {
            world->gpus[index] = g;
            if (index >= world->count) world->count = index + 1;
        }
    }
    fclose(file);
}

static void note(const char *function, int index) {
    const char *path = getenv("FAKE_NVML_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "%s %d\n", function, index);
    fclose(file);
}

/* Note the call, hang if the script says so, and give the state of GPU number index (or of the driver: -1). */
static int enter(const char *function, int index, struct world *world) {
    note(function, index);
    for (;;) {
        read_script(world);
        int state = index < 0 ? world->init_state : world->gpus[index].state;
        if (state != HANG) return state;
        usleep(10000);
    }
}

static int enter_gpu(const char *function, device_t device, struct gpu *gpu) {
    struct world world;
    int state = enter(function, device->index, &world);
    *gpu = world.gpus[device->index];
    return state;
}

int nvmlInitWithFlags(unsigned flags) {
    struct world world;
    (void)flags;
    return enter(__func__, -1, &world);
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    note(__func__, -1);
    return OK;
}

const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "fake error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct world world;
    int state = enter(__func__, -1, &world);
    *count = (unsigned)world.count;
    return state;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    struct world world;
    if (index >= MAX_GPUS) return INVALID_ARGUMENT;
    int state = enter(__func__, (int)index, &world);
    if ((int)index >= world.count) return INVALID_ARGUMENT;
    devices[index].index = (int)index;
    *device = (device_t)&devices[index];
    return state;
}

int nvmlDeviceGetUUID(device_t device, char *uuid, unsigned length) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    snprintf(uuid, length, "GPU-%08x-0000-4000-8000-000000000000", device->index);
    return OK;
}

int nvmlDeviceGetName(device_t device, char *name, unsigned length) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    snprintf(name, length, "Simulated GPU");
    return OK;
}

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo(device_t device, struct memory *memory) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (gpu.total_mib < 0) return NOT_SUPPORTED;
    memory->total = (unsigned long long)gpu.total_mib << 20;
    memory->used = (unsigned long long)gpu.used_mib << 20;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(device_t device, struct memory_v2 *memory) {
    struct memory plain;
    int state = nvmlDeviceGetMemoryInfo(device, &plain);
    if (state) return state;
    memory->total = plain.total;
    memory->reserved = 0;
    memory->used = plain.used;
    memory->free = plain.free;
    return OK;
}

int nvmlDeviceGetUtilizationRates(device_t device, unsigned *rates) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (gpu.utilisation < 0) return NOT_SUPPORTED;
    rates[0] = (unsigned)gpu.utilisation;
    rates[1] = 0;
    return OK;
}

int nvmlDeviceGetPowerUsage(device_t device, unsigned *milliwatts) {
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (gpu.power < 0) return NOT_SUPPORTED;
    *milliwatts = (unsigned)gpu.power;
    return OK;
}

int nvmlDeviceGetTemperature(device_t device, int sensor, unsigned *celsius) {
    (void)sensor;
    struct gpu gpu;
    int state = enter_gpu(__func__, device, &gpu);
    if (state) return state;
    if (gpu.temperature < 0) return NOT_SUPPORTED;
    *celsius = (unsigned)gpu.temperature;
    return OK;
}
