"""Facts from texts in the forms of several vendors, written for these tests."""

from __future__ import annotations

import pytest

from ammd.runtime import fact_texts
from ammd.runtime.device import Device
from ammd.runtime.device_facts import DeviceFacts, parse_facts, read_facts
from ammd.runtime.local_device import LocalConnection

OLD = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
NEW = f"{OLD} atomics fphp asimdhp asimdrdm asimddp i8mm bf16 sve sve2"
PIXEL = f"""@@ammd machine
aarch64

@@ammd kernel
Linux 5.15.110-android14

@@ammd cpuinfo
processor	: 0
BogoMIPS	: 49.15
Features	: {NEW}
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd46
CPU revision	: 1

processor	: 4
Features	: {NEW}
CPU implementer	: 0x41
CPU part	: 0xd4d

processor	: 8
Features	: {NEW} paca pacg
CPU implementer	: 0x41
CPU part	: 0xd4e

@@ammd meminfo
MemTotal:        7735296 kB
MemFree:          214220 kB
MemAvailable:    3204104 kB
HugePages_Total:       0

@@ammd status
Name:	cat
Cpus_allowed:	1ff
Cpus_allowed_list:	0-8

@@ammd frequencies
/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq:1704000
/sys/devices/system/cpu/cpu4/cpufreq/cpuinfo_max_freq:2367000
/sys/devices/system/cpu/cpu8/cpufreq/cpuinfo_max_freq:2914000

@@ammd board

@@ammd os

@@ammd zones
BIG 48000
LITTLE 41500
none-sensor 0

@@ammd supplies

@@ammd properties
[ro.build.version.release]: [14]
[ro.product.manufacturer]: [Google]
[ro.product.model]: [Pixel 8]
[ro.soc.manufacturer]: [Google]
[ro.soc.model]: [Tensor G3]
[ro.empty]: []

@@ammd battery
Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  status: 2
  present: true
  level: 83
  scale: 100
  temperature: 297
  technology: Li-ion

@@ammd thermal
IsStatusOverride: false
Thermal Status: 1
Cached temperatures:
	Temperature{{mValue=51.0, mType=0, mName=BIG, mStatus=0}}
HAL Ready: true
HAL connection:
	ThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
	Temperature{{mValue=38.25, mType=3, mName=VIRTUAL-SKIN, mStatus=1}}
	Temperature{{mValue=29.7, mType=2, mName=battery, mStatus=0}}
	Temperature{{mValue=NaN, mType=0, mName=TPU, mStatus=0}}
	Temperature{{mValue=-274.0, mType=9, mName=gone, mStatus=0}}
Current cooling devices from HAL:
	CoolingDevice{{mValue=3, mType=2, mName=thermal-cpufreq-0}}
"""
RASPBERRY = f"""@@ammd machine
aarch64
@@ammd kernel
Linux 6.6.31+rpt-rpi-2712
@@ammd cpuinfo
processor	: 0
Features	: {OLD} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU part	: 0xd0b

processor	: 1
Features	: {OLD} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU part	: 0xd0b

Revision	: c04170
Model		: Raspberry Pi 5 Model B Rev 1.0
@@ammd meminfo
MemTotal:        8245408 kB
@@ammd status
Cpus_allowed_list:	0-1
@@ammd frequencies
/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq:2400000
/sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq:2400000
@@ammd board
Raspberry Pi 5 Model B Rev 1.0
@@ammd os
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
ID=debian
@@ammd zones
cpu-thermal 52300
"""


def test_a_phone_with_three_kinds_of_cores() -> None:
    facts = parse_facts(PIXEL)
    assert (facts.model, facts.soc, facts.system) == ("Google Pixel 8", "Google Tensor G3", "Android 14")
    assert [(core.number, core.max_hz, core.part) for core in facts.cores] == [
        (0, 1_704_000_000, "Cortex-A510"),
        (4, 2_367_000_000, "Cortex-A715"),
        (8, 2_914_000_000, "Cortex-X3"),
    ]
    assert facts.big_cores == (4, 8)  # 2.367 is more than three quarters of 2.914
    assert {"asimddp", "i8mm", "sve2"} <= set(facts.features)
    assert "paca" not in facts.features  # one core alone has it
    assert (facts.ram_bytes, facts.ram_available_bytes) == (7735296 * 1024, 3204104 * 1024)
    state = facts.state
    assert (state.battery_percent, state.battery_celsius, state.plugged) == (83, 29.7, True)
    assert state.thermal_status == 1
    assert state.temperatures_celsius == {"VIRTUAL-SKIN": 38.2, "battery": 29.7}


def test_a_board_without_a_battery() -> None:
    facts = parse_facts(RASPBERRY)
    assert (facts.model, facts.system) == ("Raspberry Pi 5 Model B Rev 1.0", "Debian GNU/Linux 12 (bookworm)")
    assert [core.part for core in facts.cores] == ["Cortex-A76", "Cortex-A76"]
    assert facts.big_cores == (0, 1)
    assert "asimddp" in facts.features
    assert "i8mm" not in facts.features
    assert facts.state.battery_percent is None
    assert facts.state.plugged is None
    assert facts.state.temperatures_celsius == {"cpu-thermal": 52.3}


def test_nothing_known_is_none_and_no_guess() -> None:
    facts = parse_facts("")
    assert (facts.model, facts.soc, facts.ram_bytes, facts.system) == (None, None, None, None)
    assert facts.cores == facts.big_cores == facts.features == ()


def test_cores_that_the_shell_may_not_use_do_not_count() -> None:
    facts = parse_facts(PIXEL.replace("Cpus_allowed_list:	0-8", "Cpus_allowed_list:	0,4-5"))
    assert [core.number for core in facts.cores] == [0, 4]
    assert facts.big_cores == (4,)


def test_without_frequencies_all_cores_are_big() -> None:
    assert parse_facts(RASPBERRY.replace("cpuinfo_max_freq", "other")).big_cores == (0, 1)


def test_a_vendor_that_prints_the_battery_twice_and_in_two_hundredths() -> None:
    text = "level: 150\nscale: 200\npresent: true\ntemperature: 331\nUSB powered: false\nlevel: 3\ntemperature: 0\n"
    battery = fact_texts.battery(text)
    assert battery == fact_texts.Battery(percent=75, celsius=33.1, plugged=False)


@pytest.mark.parametrize("text", ["", "present: false\nlevel: 50\n", "Can't find service: battery\n"])
def test_no_battery_is_none(text: str) -> None:
    assert fact_texts.battery(text) is None


def test_a_thermal_service_without_fresh_readings_gives_those_it_kept() -> None:
    kept = "Temperature{mValue=36.5, mType=3, mName=skin, mStatus=0}"
    text = f"Thermal Status: 0\nCached temperatures:\n {kept}\nHAL Ready: false\n"
    assert fact_texts.thermal_service(text) == fact_texts.Thermal(status=0, celsius={"skin": 36.5})
    assert fact_texts.thermal_service("Can't find service: thermalservice") == fact_texts.Thermal(status=None)


def test_zones_in_degrees_and_in_thousandths() -> None:
    text = "cpu-0-0 45300\ncpu-0-0 47100\nmodem 39\npm8550_tz 0\nbroken cat: invalid\nsoc-thermal -40000\n"
    assert fact_texts.zones(text) == {"cpu-0-0": 47.1, "modem": 39.0}


def test_older_androids_name_the_chip_by_hardware_or_platform() -> None:
    hardware = "processor : 0\nHardware	: Qualcomm Technologies, Inc SM8150\n"
    assert fact_texts.soc({}, cpuinfo=hardware) == "Qualcomm Technologies, Inc SM8150"
    assert fact_texts.soc({"ro.board.platform": "mt6893"}, cpuinfo="processor : 0\n") == "mt6893"
    assert fact_texts.soc({}, cpuinfo="model name	: AMD Ryzen 7\n") == "AMD Ryzen 7"


def test_a_laptop_supply_is_a_battery() -> None:
    text = "POWER_SUPPLY_NAME=BAT0\nPOWER_SUPPLY_STATUS=Discharging\nPOWER_SUPPLY_CAPACITY=64\nPOWER_SUPPLY_TEMP=285\n"
    assert fact_texts.supply(text) == fact_texts.Battery(percent=64, celsius=28.5, plugged=False)
    assert fact_texts.supply("POWER_SUPPLY_NAME=AC\nPOWER_SUPPLY_ONLINE=1\n") is None


def test_this_machine_says_what_psutil_says_too() -> None:
    import os

    import psutil

    with Device(LocalConnection()) as device:
        facts: DeviceFacts = read_facts(device)
    assert facts.ram_bytes == pytest.approx(
        psutil.virtual_memory().total, rel=1e-6
    )  # both from MemTotal, in kB
    assert facts.machine == os.uname().machine
    assert {core.number for core in facts.cores} == os.sched_getaffinity(0)
